"""What the Hub says of a repository, and what is known of it without the Hub.

``info`` needs one request. What it learned of a commit is kept, since a commit never changes. Without the
Hub, a branch or tag means what it meant when it was fetched, and a commit is known if it is in the cache.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import read_plain, write_text
from stlm_kd.artifacts.hashing import Algorithm, cache_folder
from stlm_kd.artifacts.record import Pinned
from stlm_kd.notes import note
from stlm_kd.sharing.failures import HubUnreachable, RateLimited, hub_errors
from stlm_kd.sharing.names import HubName, is_commit, is_revision

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

_ATTEMPTS = 2
"""Requests for information, if nothing is cached and the network or the server fails."""


@dataclass(frozen=True, slots=True)
class RepoFile:
    """Size of a file in bytes, and the hash that the Hub names it by ("" if it is not told)."""

    size: int
    algorithm: Algorithm
    hash: str


@dataclass(frozen=True, slots=True)
class RepoInfo(Pinned):
    """A repository at a commit.

    Attributes:
        files: All files by path; None if only the cache is known.
    """

    files: Mapping[str, RepoFile] | None = None

    @property
    def pinned(self) -> HubName:
        """Its name at the commit."""
        return HubName(self.kind, self.id, self.commit)

    @property
    def record(self) -> Pinned:
        """What a run's record says of it."""
        return Pinned(self.kind, self.id, self.asked, self.commit, self.licence, self.gated)


INFO: TypeAdapter[RepoInfo] = TypeAdapter(RepoInfo)


def info(name: HubName) -> RepoInfo:
    """A repository at the commit that its revision means now, by one request.

    A commit whose files are known needs none.

    Raises:
        HubUnreachable: The Hub does not answer.
        MissingResourceError: Missing, private, or refused; the message says why and what to do.
    """
    if (known := stored(name)) is not None:
        return known
    for attempt in range(_ATTEMPTS):
        try:
            return ask(name)
        except HubUnreachable as error:
            if (
                is_offline()
                or isinstance(error, RateLimited)
                or attempt + 1 == _ATTEMPTS
                or cached_commit(name) is not None
            ):
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


def ask(name: HubName) -> RepoInfo:
    """Like ``info``, but always by a request, and once.

    Raises:
        MissingResourceError: As ``info``.
    """
    with hub_errors(name):
        found = _asked(name)
    _store(found)
    return found


def _asked(name: HubName) -> RepoInfo:
    from huggingface_hub import HfApi, constants

    api = HfApi()
    information = api.model_info if name.kind == "model" else api.dataset_info
    answer: ModelInfo | DatasetInfo = information(
        name.id, revision=name.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    if not is_commit(answer.sha or ""):
        raise ValueError(f"commit {answer.sha!r} found")
    if answer.id != name.id:
        note(f"{name.id}: now {answer.id} on the Hub; write that name")
    card: Any = answer.card_data
    return RepoInfo(
        name.kind,
        name.id,
        name.revision,
        commit=str(answer.sha),
        licence=_licence(card.get("license") if card is not None else None),
        gated=bool(answer.gated),
        files={
            file.rfilename: RepoFile(file.lfs.size, "sha256", file.lfs.sha256)
            if file.lfs is not None
            else RepoFile(file.size or 0, "git", file.blob_id or "")
            for file in answer.siblings or ()
        },
    )


def _licence(stated: object) -> str | None:
    """A card's licence, or licences, as one short text that prints; None without one."""
    listed = stated if isinstance(stated, list) else [stated] if stated is not None else []
    text = "".join(letter for letter in ", ".join(map(str, listed)) if letter.isprintable())
    return text.strip()[:200] or None


def info_from_cache(name: HubName, failure: HubUnreachable) -> RepoInfo:
    """A repository at the commit that its revision meant when it was fetched, without the Hub.

    Args:
        name: The repository.
        failure: Why the Hub is not asked.

    Raises:
        HubUnreachable: The revision was never fetched; the message says ``failure`` and what is cached.
    """
    commit = cached_commit(name)
    if commit is None:
        known = ", ".join(f"{rev} ({commit[:7]})" for rev, commit in sorted(_cached_names(name).items()))
        cached = f"; {name.revision or 'main'} was never fetched, the cache has {known}" if known else ""
        raise type(failure)(f"{failure}{cached}") from failure
    known_info = _stored(name, commit)
    return replace(known_info or RepoInfo(name.kind, name.id, None, commit), asked=name.revision)


def cached_commit(name: HubName) -> str | None:
    """The commit that a revision meant when it was fetched; None if it was not. Commits may be shortened."""
    if name.is_commit:
        is_known = _stored(name, name.revision or "") is not None
        return name.revision if is_known or name.revision in _cached_names(name).values() else None
    known = _cached_names(name)
    revision = name.revision or "main"
    if revision in known:
        return known[revision]
    short = re.fullmatch("[0-9a-f]{7,39}", revision) is not None
    found = {commit for commit in known.values() if short and commit.startswith(revision)}
    return found.pop() if len(found) == 1 else None


def remember_fetched(info: RepoInfo) -> None:
    """Note in the Hub's cache what a branch or tag means, now that its files are there.

    Pins may be a stranger's: what is no revision is not noted, and nothing but such a note is replaced.
    """
    revision = info.asked or "main"
    if re.fullmatch("[0-9a-f]{7,40}", revision) or not is_revision(revision):  # a commit, or no name at all
        return
    refs = snapshots(info.pinned).parent / "refs"
    place = refs / revision
    try:
        before = place.read_text().strip() if place.exists() else ""
        is_note = place.resolve().is_relative_to(refs.resolve()) and (not before or is_commit(before))
        if is_note and before != info.commit:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, info.commit)
    except (OSError, UnicodeDecodeError):  # a cache that others own: offline, the revision stays unknown
        return


def snapshots(name: HubName) -> Path:
    """The folder of a repository's commits in the Hub's cache, which is documented to lie there."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{name.kind}s--{name.id.replace('/', '--')}" / "snapshots"


def _cached_names(name: HubName) -> dict[str, str]:
    """The commits of the Hub's cache, by branch and tag, or else by their own name."""
    folder = snapshots(name)
    refs = folder.parent / "refs"
    found: dict[str, str] = {}
    for path in refs.rglob("*"):
        if path.is_file() and is_commit(commit := path.read_text(errors="replace").strip()):
            found[path.relative_to(refs).as_posix()] = commit
    commits = {path.name: path.name for path in folder.glob("*") if path.is_dir()}
    return found | {commit: commit for commit in commits if commit not in found.values()}


def is_offline() -> bool:
    """Whether the user switched the Hub off (``HF_HUB_OFFLINE=1``)."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def stored(name: HubName) -> RepoInfo | None:
    """What was learned earlier of a commit; None for other revisions, and for one that is not known."""
    known = _stored(name, name.revision or "") if name.is_commit else None
    return None if known is None else replace(known, asked=name.revision)


def known_place(name: HubName, commit: str, of: str = "") -> Path:
    """The file of what was learned of a commit, or of a part of it."""
    folder = cache_folder() / "hub" / f"{name.kind}s--{name.id.replace('/', '--')}"
    return folder / f"{commit}{of and '-'}{quote(of, safe='')}.json"


def _stored(name: HubName, commit: str) -> RepoInfo | None:
    try:
        found = INFO.validate_json(read_plain(known_place(name, commit)))
    except (OSError, ValidationError):
        return None
    return found if found.pinned == name.at(commit) and found.files is not None else None


def _store(found: RepoInfo) -> None:
    place = known_place(found.pinned, found.commit)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(asdict(found)))
    except OSError:  # a full or foreign disk: the next command asks again
        return
