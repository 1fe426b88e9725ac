"""Fetch a recipe from elsewhere into the cache: checked, and kept whole or not at all.

What is kept lies in a folder named by its commit or hash, and never changes. Nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import clear_unfinished, read_plain, remove, write_json, written_whole
from stlm_kd.artifacts.hashing import cache_folder, sha256
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, UsageError
from stlm_kd.sharing import git, snapshot, web
from stlm_kd.sharing.address import RECIPE, GitAddress, HubAddress, RemoteAddress, WebAddress
from stlm_kd.sharing.hub import info
from stlm_kd.sharing.limits import FOLDER, MAX_YAML, Entry, check_contents, checked_listing
from stlm_kd.sharing.names import HubName

_MANIFEST, _FILES = "manifest.json", "files"
_PATIENCE = 600.0
"""Seconds to wait for another process that fetches."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A recipe's folder in the cache.

    Attributes:
        folder: All that was fetched; only to be read.
        file: The recipe in it.
        origin: The address with its commit or hash.
        hashes: SHA-256 (hex) of each file, by path in the folder.
    """

    folder: Path
    file: Path
    origin: RemoteAddress
    hashes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Manifest:
    address: str
    files: dict[str, str]


_MANIFESTS: TypeAdapter[_Manifest] = TypeAdapter(_Manifest)


def fetch(
    address: RemoteAddress,
    *,
    cache: Path | None = None,
    local_servers: bool = False,
    check: Callable[[Path, Path], None] = lambda folder, file: None,
) -> Fetched:
    """Fetch what an address names, or find it in the cache.

    An address with a commit or a hash that is in the cache needs no network.

    Args:
        address: The address.
        cache: The folder of fetched recipes; None for ``recipes`` in ``cache_folder``.
        local_servers: Whether http on this machine is allowed, for tests.
        check: Called with the folder and the recipe before they are kept; what it raises keeps them out.

    Raises:
        MissingResourceError: It cannot be reached, or there is no such file or commit.
        RecipeError: It is refused: names, sizes, contents, or not the stated hash.
        UsageError: An https address without a hash; the message gives it.
    """
    root = cache_folder() / "recipes" if cache is None else cache
    pinned = _pinned(address, local=local_servers)
    place = _place(root, pinned)
    with _held(root):
        hashes = _kept(place, pinned)
        if hashes is None:
            remove(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(place) as unfinished:
                folder = unfinished / _FILES
                folder.mkdir(parents=True)
                _download(pinned, folder, local=local_servers)
                check_contents(folder, str(pinned))
                check(folder, _recipe_in(folder, pinned))
                hashes = _hashes(folder)
                write_json(unfinished / _MANIFEST, {"address": _folder_name(pinned), "files": hashes})
        else:
            check(place / _FILES, _recipe_in(place / _FILES, pinned))
    folder = place / _FILES
    return Fetched(folder, _recipe_in(folder, pinned), pinned, hashes)


@contextmanager
def _held(root: Path) -> Iterator[None]:
    """Lock the cache for this process and remove what killed ones left."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=_PATIENCE):
            clear_unfinished(root)
            yield
    except Timeout as error:
        raise MissingResourceError(
            f"{root}: another process fetches recipes since {_PATIENCE:.0f} s; wait until it has ended"
        ) from error


def _pinned(address: RemoteAddress, *, local: bool) -> RemoteAddress:
    """The address with its commit or hash, which the network tells if the address does not."""
    if isinstance(address, GitAddress):
        revision = git.commit_of(address.url, address.revision)
        return replace(address, revision=revision)
    if isinstance(address, HubAddress):
        name = HubName(address.kind, address.repo, address.revision)
        return address if name.is_commit else replace(address, revision=info(name).commit)
    if address.sha256 is None:
        content = web.read(address.url, limit=MAX_YAML, local=local)
        hashed = WebAddress(address.url, hashlib.sha256(content).hexdigest())
        raise UsageError(f"{address}: may change at any time; to take what is there now, give {hashed}")
    return address


def _folder_name(address: RemoteAddress) -> str:
    """The address of all that is fetched for an address, whichever file of it is the recipe."""
    return str(address if isinstance(address, WebAddress) else replace(address, file=RECIPE))


def _place(root: Path, address: RemoteAddress) -> Path:
    return root / hashlib.sha256(_folder_name(address).encode()).hexdigest()[:32]


def _kept(place: Path, address: RemoteAddress) -> dict[str, str] | None:
    """Hashes of a folder in the cache; None if it is missing, or not as it was fetched."""
    try:
        manifest = _MANIFESTS.validate_json(read_plain(place / _MANIFEST))
        unchanged = manifest.files == _hashes(place / _FILES) and manifest.address == _folder_name(address)
    except (OSError, ValidationError):
        return None
    return manifest.files if unchanged else None


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _recipe_in(folder: Path, address: RemoteAddress) -> Path:
    """The recipe in a fetched folder; in a model's repository it may lie in a folder of its own."""
    if isinstance(address, WebAddress):
        return folder / _web_name(address)
    names = (address.file, f"{FOLDER}/{address.file}")
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        there = ", ".join(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))[:5])
        raise MissingResourceError(f"{address}: no {address.file} there; found {there or 'no .yaml file'}")
    return found


def _web_name(address: WebAddress) -> str:
    """The name of a recipe of one file, which becomes that of its runs."""
    name = address.url.rpartition("/")[2]
    return name if name.replace("-", "").replace("_", "").replace(".", "").isalnum() else RECIPE


def _download(address: RemoteAddress, folder: Path, *, local: bool) -> None:
    if isinstance(address, WebAddress):
        content = web.read(address.url, limit=MAX_YAML, local=local)
        found = hashlib.sha256(content).hexdigest()
        if found != address.sha256:
            message = f"sha256 {found} found; expected {address.sha256}"
            raise RecipeError(address.url, [RecipeFault("", message)])
        (folder / _web_name(address)).write_bytes(content)
    elif isinstance(address, HubAddress):
        _download_from_hub(address, folder)
    else:
        assert address.revision is not None, "pinned"
        git.download(address.url, address.revision, folder, origin=str(address))


def _download_from_hub(address: HubAddress, folder: Path) -> None:
    found = info(HubName(address.kind, address.repo, address.revision))
    listed = (
        Entry(path, file.size, f"{file.algorithm}:{file.hash}") for path, file in (found.files or {}).items()
    )
    names = [entry.path for entry in checked_listing(listed, str(address))]
    for name, file in zip(names, snapshot.fetch(found, names), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
