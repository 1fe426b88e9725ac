"""Names of repositories on the Hugging Face Hub, told from paths.

==========================  =================================================================
``hub:org/name[@rev]``      the Hub
``./x``, ``/x``, ``~/x``,   a path: what starts with ``.``, ``/``, ``~`` or ``$``, has two
``$X/x``, ``a/b/c``         slashes or more, or cannot be a Hub id
``org/name[@rev]``, ``x``   the Hub, unless a file or folder of this name exists here: then
                            the path, and one line says so
==========================  =================================================================
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from stlm_kd.errors import MissingResourceError, one_line
from stlm_kd.notes import note

Kind = Literal["model", "dataset"]

PREFIX = "hub:"
_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # bytes, on Linux
_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,150}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and the branch, tag or commit of it (None: its main branch).

    >>> str(HubName("model", "org/name", "v1"))
    'org/name@v1'
    """

    kind: Kind
    id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id

    @property
    def is_commit(self) -> bool:
        """Whether the revision is a commit, which never means anything else."""
        return self.revision is not None and is_commit(self.revision)

    def at(self, revision: str) -> HubName:
        """The same repository at another revision."""
        return replace(self, revision=revision)


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit's full name."""
    return _COMMIT.fullmatch(revision) is not None


def is_revision(text: str) -> bool:
    """Whether a text may be a branch, tag or commit: also one that is a safe relative path.

    >>> [is_revision(text) for text in ("v1.0", "feature/x", "../x", "/x", "")]
    [True, True, False, False, False]
    """
    return _REVISION.fullmatch(text) is not None and ".." not in text


def hub_name(text: str, kind: Kind = "model", *, revision: str | None = None) -> HubName:
    """A repository's name where only the Hub can be meant; folders are not looked at.

    Args:
        text: ``[hub:]org/name[@revision]``.
        kind: Kind of repository.
        revision: The revision, if it is given beside the name.

    >>> hub_name("org/name@v1", "dataset")
    HubName(kind='dataset', id='org/name', revision='v1')

    Raises:
        MissingResourceError: No Hub id, no revision, two revisions, or a pull request's branch.
    """
    name, at, asked = text.removeprefix(PREFIX).partition("@")
    if not _is_id(name):
        raise MissingResourceError(f"{text}: found {name!r}; expected an id on the Hub, such as org/name")
    if at and revision is not None and asked != revision:
        raise MissingResourceError(f"{text}: two revisions found, {asked} and {revision}; give one")
    asked = asked if at else revision or ""
    if (at or asked) and not is_revision(asked):
        raise MissingResourceError(
            f"{text}: revision {asked!r} found; expected a branch, a tag or a commit, as in {name}@main"
        )
    if asked.startswith("refs/pr/"):
        raise MissingResourceError(
            f"{text}: a pull request's branch, which its author can change; give the commit that you reviewed"
        )
    return HubName(kind, name, asked or None)


def hub_name_or_path(text: str, kind: Kind = "model") -> HubName | None:
    """A repository's name, or None if the text is a path by the rule of this module.

    >>> hub_name_or_path("./org/name") is None, hub_name_or_path("runs/a/model") is None
    (True, True)
    >>> hub_name_or_path("org/name")
    HubName(kind='model', id='org/name', revision=None)

    Raises:
        MissingResourceError: As ``hub_name``, for names that can only be on the Hub.
    """
    if text.startswith(PREFIX):
        return hub_name(text, kind)
    if not may_be_on_hub(text):
        return None
    if not _exists(text):
        return hub_name(text, kind)
    if "/" in text.partition("@")[0]:
        note(f"{text}: read as the path here; write ./{text} for it, or {PREFIX}{text} for the Hub")
    return None


def may_be_on_hub(text: str) -> bool:
    """Whether a text is a name on the Hub where no file or folder has this name."""
    return text.startswith(PREFIX) or _is_id(text.partition("@")[0])


def expanded(path: str) -> Path:
    """A path with ``~`` and ``$VARIABLES`` filled in, such as ``$STLM_KD_DATA/lm/train.txt.gz``.

    Raises:
        MissingResourceError: A variable is not set.
    """
    if unset := unset_variables(path):
        names = ", ".join(unset)
        raise MissingResourceError(
            f"{path}: the environment variable {names} is not set; set it or give a full path"
        )
    return user_path(os.path.expandvars(path))


def user_path(text: str) -> Path:
    """A path with ``~`` filled in, which a file may have.

    Raises:
        MissingResourceError: An unknown user, a NUL, or a name that is too long for any file.
    """
    too_long = len(os.fsencode(text)) >= _LONGEST_PATH
    if "\0" in text or too_long or any(len(os.fsencode(one)) > _LONGEST_NAME for one in text.split("/")):
        raise MissingResourceError(
            f"{one_line(text)}: not the name of a file; expected no NUL, at most {_LONGEST_NAME} bytes "
            f"between slashes and fewer than {_LONGEST_PATH} in all"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        user = text.partition("/")[0]
        raise MissingResourceError(
            f"{text}: no user {user[1:]}, whose folder {user} is; give a full path"
        ) from error


def unset_variables(path: str) -> tuple[str, ...]:
    """The environment variables in a path that are not set."""
    names = re.findall(r"\$(?:\{(\w+)\}|(\w+))", os.path.expandvars(path))
    return tuple(dict.fromkeys(braced or plain for braced, plain in names))


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _is_id(name: str) -> bool:
    """Whether the Hub accepts a name as an id."""
    return _ID.fullmatch(name) is not None and not re.search(r"--|\.\.|[.-]$|\.git$", name)
