"""Where files are pushed to: a repository on the Hub, a branch of a git repository, or a folder here.

Each target is changed by one step, so an interrupted push leaves it as it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from stlm_kd.artifacts.atomic import clear_unfinished_for, writing, written_whole
from stlm_kd.errors import MissingResourceError, UsageError
from stlm_kd.sharing import git
from stlm_kd.sharing.address import RECIPE, GitAddress, HubAddress, is_tag, parse_address
from stlm_kd.sharing.failures import hub_errors
from stlm_kd.sharing.hub import is_offline
from stlm_kd.sharing.limits import size_limit
from stlm_kd.sharing.names import HubName, expanded, is_commit, may_be_on_hub

_READ_ONLY = "git and the Hub make commits, which have names of their own; leave it out, or name a tag: --tag"
_REFUSALS = {
    401: "the Hub wants a token that may write; log in (hf auth login), or set HF_TOKEN",
    402: "the Hub wants a paid account for this; see its page",
    403: "your token may not write there; use one that may, or another repository",
    412: "another commit came first; nothing was pushed; push again",
}


Target: TypeAlias = HubAddress | GitAddress | Path


@dataclass(frozen=True, slots=True)
class Contents:
    """Files that belong together.

    Attributes:
        files: Where the content of each path is.
        marker: The path without which a place is not one of such files, so nothing of it is replaced.
        message: Of the commit.
    """

    files: Mapping[str, Path]
    marker: str
    message: str

    def obsolete(self, present: Iterable[str], place: str) -> list[str]:
        """Files of an earlier push that are not in this one; other recipes stay.

        Raises:
            MissingResourceError: Files of another kind would be replaced.
        """
        there = {*present}
        if self.marker not in there:
            if taken := sorted(there & self.files.keys()):
                raise MissingResourceError(
                    f"{place}: holds {taken[0]} but no {self.marker}, so something else; choose another place"
                )
            return []
        if not self.marker.endswith(".yaml"):
            return [name for name in there - self.files.keys() if name.endswith(".safetensors")]
        gone = sorted(there - self.files.keys())
        return [name for name in gone if size_limit(name) is not None and not name.endswith(".yaml")]


def target_of(text: str, *, private: bool = False, tag: str | None = None, hub_only: bool = False) -> Target:
    """The place that a text names.

    Raises:
        UsageError: Not a place to push to, or an option that it does not have.
    """
    address = parse_address(text)
    if private and not isinstance(address, HubAddress):
        raise UsageError("--private: only for the Hub; leave it out")
    if tag is not None and address is None:
        raise UsageError("--tag: only for the Hub and git; leave it out")
    if tag is not None and not is_tag(tag):
        raise UsageError(
            f"--tag: {tag!a} found; expected letters, digits and . _ - + such as v1.0, and no commit"
        )
    if isinstance(address, HubAddress):
        if (address.kind, address.revision, address.file) != ("model", None, RECIPE):
            raise UsageError(f"{text}: expected hf://USER/NAME alone: {_READ_ONLY}")
        return address
    if hub_only:
        raise UsageError(f"{text}: expected hf://USER/NAME")
    if isinstance(address, GitAddress):
        if address.file != RECIPE or is_commit(address.revision or ""):
            raise UsageError(f"{text}: expected git+https://…[@BRANCH]: {_READ_ONLY}")
        return address
    if address is not None:
        raise UsageError(f"{text}: cannot be written over https; push to a folder, and upload that")
    if "/" in text and may_be_on_hub(text):
        raise UsageError(f"{text}: for the Hub, give hf://{text}; for a folder, ./{text}")
    return expanded(text)


def send(target: Target, what: Contents, *, private: bool, tag: str | None, check_only: bool = False) -> str:
    """Push files, and return the address with the commit.

    ``check_only`` finds what would refuse the push, before others are made that belong to it: a repository on
    the Hub is made, but gets no commit.

    Raises:
        MissingResourceError: It cannot be reached, refuses, holds something else, or changed meanwhile.
    """
    if isinstance(target, HubAddress):
        return str(replace(target, revision=_to_hub(target, what, private, tag, check_only=check_only)))
    if isinstance(target, GitAddress):
        commit = git.publish(
            target.url,
            what.files,
            branch=target.revision,
            tag=tag,
            message=what.message,
            obsolete=lambda present: what.obsolete(present, str(target)),
            check_only=check_only,
        )
        return str(replace(target, revision=commit))
    replace_folder(target, what, check_only=check_only)
    return str(target)


def _to_hub(
    target: HubAddress, what: Contents, private: bool, tag: str | None, *, check_only: bool
) -> str | None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, repo = HfApi(), target.repo
    with _writing_errors(target):
        api.create_repo(repo, private=private or None, exist_ok=True)
        before = api.model_info(repo)
        if private and not before.private:
            raise MissingResourceError(f"{target}: is public; push to another name, or make it private")
        if tag is not None and tag in {one.name for one in api.list_repo_refs(repo).tags}:
            raise MissingResourceError(
                f"{target}: the tag {tag} exists, and tags do not move; choose another"
            )
        present = [one.rfilename for one in before.siblings or ()]
        removed = [CommitOperationDelete(name) for name in what.obsolete(present, str(target))]
        if check_only:
            return before.sha
        added = [CommitOperationAdd(name, str(path)) for name, path in what.files.items()]
        commit = api.create_commit(
            repo, [*removed, *added], commit_message=what.message, parent_commit=before.sha
        ).oid
        if tag is not None:
            api.create_tag(repo, tag=tag, revision=commit)
    return commit


@contextmanager
def _writing_errors(target: HubAddress) -> Iterator[None]:
    """Failures of the Hub as one message; some mean something else on writing than on reading."""
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline():
        raise MissingResourceError(f"{target}: the Hub is switched off; unset HF_HUB_OFFLINE, and push again")
    with hub_errors(HubName("model", target.repo)):
        try:
            yield
        except HfHubHTTPError as error:
            refusal = _REFUSALS.get(error.response.status_code)
            if refusal is None:
                raise
            raise MissingResourceError(f"{target}: {refusal}") from error


def replace_folder(folder: Path, what: Contents, *, option: str = "folder", check_only: bool = False) -> None:
    """Write a folder whole; one that is there is replaced if it holds nothing but a recipe's files.

    Args:
        folder: The folder.
        what: Its files.
        option: What chose it, for messages.
        check_only: Whether to write nothing.

    Raises:
        UsageError: It holds the current folder.
        MissingResourceError: It holds something else, or cannot be written.
    """
    target = folder.resolve()
    if Path.cwd().is_relative_to(target):
        raise UsageError(f"{folder}: holds the current folder; choose another {option}")
    with writing(folder, option):
        found = [path for path in target.rglob("*") if path.is_symlink() or not path.is_dir()]
        present = [path.relative_to(target).as_posix() for path in found]
        kept = {*present} - {*what.obsolete(present, str(folder))}
        if what.marker in present:
            kept -= what.files.keys()
        if kept:
            raise MissingResourceError(
                f"{folder}: holds {sorted(kept)[0]}, which is not of a recipe; choose another {option}"
            )
        if check_only:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_unfinished_for(target)
        with written_whole(target) as unfinished:
            for name, path in what.files.items():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, unfinished / name)
