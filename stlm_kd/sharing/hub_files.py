"""Read the files of a recipe in a repository on the Hub, at one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.artifacts.atomic import is_full_disk, remove
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault
from stlm_kd.sharing.address import HubAddress
from stlm_kd.sharing.git import is_commit
from stlm_kd.sharing.limits import Entry, checked_listing, shown

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


def commit_of(address: HubAddress) -> str:
    """The commit of an address, by one call of the Hub unless the address names it.

    Raises:
        MissingResourceError: The Hub cannot be reached, or has no such repository or revision.
    """
    if address.revision is not None and is_commit(address.revision):
        return address.revision
    from huggingface_hub import HfApi

    with _hub_errors(address):
        found = HfApi().repo_info(address.repo, repo_type=address.kind, revision=address.revision).sha
    if found is None or not is_commit(found):
        raise MissingResourceError(f"{address}: the Hub names no commit for it")
    return found


def download(address: HubAddress, folder: Path) -> None:
    """Write the files of a recipe at an address with a commit into a folder.

    Raises:
        MissingResourceError: The Hub cannot be reached, or has no such repository or commit.
        RecipeError: Names, numbers, sizes or hashes other than allowed and listed.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile

    repo, kind, commit = address.repo, address.kind, address.revision
    with _hub_errors(address):
        listing = HfApi().list_repo_tree(repo, recursive=True, repo_type=kind, revision=commit)
        entries = (_hub_entry(file) for file in listing if isinstance(file, RepoFile))
        wanted = checked_listing(entries, str(address))
        if wanted:
            names = [entry.path for entry in wanted]
            snapshot_download(repo, repo_type=kind, revision=commit, local_dir=folder, allow_patterns=names)
    remove(folder / ".cache")
    for entry in wanted:
        content = (folder / entry.path).read_bytes() if (folder / entry.path).is_file() else None
        if content is None or _hash_like(entry.hashed, content) != entry.hashed:
            message = "other content than the Hub's listing states; fetch it again"
            raise RecipeError(str(address), [RecipeFault(entry.path, message)])


def _hub_entry(file: RepoFile) -> Entry:
    hashed = f"git:{file.blob_id}" if file.lfs is None else f"sha256:{file.lfs.sha256}"
    return Entry(file.path, file.size, hashed)


def _hash_like(hashed: str, content: bytes) -> str:
    """The hash of a content, of the kind of another hash."""
    if hashed.startswith("sha256:"):
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    return f"git:{hashlib.sha1(b'blob %d' % len(content) + bytes(1) + content).hexdigest()}"


@contextmanager
def _hub_errors(address: HubAddress) -> Iterator[None]:
    """Raise errors of the Hub's library as ours."""
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise MissingResourceError(
            f"{address}: not in the cache, and HF_HUB_OFFLINE is set; go online once"
        ) from error
    except (HTTPError, OSError) as error:
        if is_full_disk(error):
            raise
        reason = shown(str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__)
        raise MissingResourceError(
            f"{address}: cannot be fetched ({reason}); check the address and the connection, and log in if "
            "it is private"
        ) from error
