"""Addresses of recipes: on the Hub, at an https address, in a git repository, or a local name.

::

    hf://[datasets/]USER/REPO[@REVISION][/FILE.yaml]      a "/" in the revision is written %2F
    https://HOST/…/FILE.yaml[#sha256=HEX]
    git+https://HOST/…[@REVISION][#FILE.yaml]             git+ssh and git+file likewise
    a file, a folder, or the name of a built-in recipe
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote

from stlm_kd.errors import UsageError

RECIPE = "recipe.yaml"
"""The file that an address without one means."""

TAG = "stlm-kd-recipe"
"""The tag by which recipes are found on the Hub."""

_FILE = r"((?:[A-Za-z0-9][A-Za-z0-9_.-]*/)*[A-Za-z0-9][A-Za-z0-9_.-]*\.yaml)"
_HOST = r"[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_HUB = re.compile(
    rf"hf://(datasets/)?((?!models/|spaces/|datasets/){_NAME}/{_NAME})(?:@([^/@]+))?(?:/{_FILE})?"
)
_WEB = re.compile(rf"(https://{_HOST}/[^?#]*\.yaml)(?:#sha256=([0-9a-fA-F]{{64}}))?")
_GIT = re.compile(
    rf"git\+((?:https://{_HOST}|ssh://(?:{_NAME}@)?{_HOST}|file://)/[^@?#]+)(?:@([^#]+))?(?:#{_FILE})?"
)
_REVISION = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_+-]|\.(?!\.)|/(?=[A-Za-z0-9]))*")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A recipe in a repository on the Hub; ``revision`` None is its main branch."""

    repo: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    file: str = RECIPE

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='+')}"
        file = "" if self.file == RECIPE else f"/{self.file}"
        return f"hf://{'datasets/' if self.kind == 'dataset' else ''}{self.repo}{revision}{file}"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """A recipe of one file; ``sha256`` is the hash that it must have, in hexadecimal."""

    url: str
    sha256: str | None = None

    def __str__(self) -> str:
        return self.url if self.sha256 is None else f"{self.url}#sha256={self.sha256}"


@dataclass(frozen=True, slots=True)
class GitAddress:
    """A recipe in a git repository; ``revision`` None is what its HEAD names."""

    url: str
    revision: str | None = None
    file: str = RECIPE

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"git+{self.url}{revision}{'' if self.file == RECIPE else f'#{self.file}'}"


def is_tag(text: str) -> bool:
    """Whether a text can name a tag: one that git, the Hub and addresses take, and no commit."""
    looks_like_commit = re.fullmatch("[0-9a-f]{7,40}", text) is not None
    has_odd_end = any(part.endswith((".", ".lock")) for part in text.split("/"))
    is_odd = looks_like_commit or has_odd_end or text == "HEAD" or text.startswith("refs/")
    return _REVISION.fullmatch(text) is not None and not is_odd and len(text) <= 100


RemoteAddress: TypeAlias = HubAddress | WebAddress | GitAddress


def parse_address(text: str) -> RemoteAddress | None:
    """The remote address in a text; None for a local name, which has no ``://``.

    >>> parse_address("hf://alice/tiny@v1")
    HubAddress(repo='alice/tiny', kind='model', revision='v1', file='recipe.yaml')
    >>> parse_address("recipes/tiny.yaml") is None
    True

    Raises:
        UsageError: A malformed address, with a password, or of an unknown scheme.
    """
    if "://" not in text:
        return None
    found: HubAddress | GitAddress | None = None
    if text.isascii() and text.isprintable() and not set(text) & set(" \\"):
        if match := _HUB.fullmatch(text):
            revision = None if match[3] is None else unquote(match[3])
            found = HubAddress(match[2], "dataset" if match[1] else "model", revision, match[4] or RECIPE)
        elif match := _WEB.fullmatch(text):
            return WebAddress(match[1], match[2] and match[2].lower())
        elif match := _GIT.fullmatch(text):
            found = GitAddress(match[1], match[2], match[3] or RECIPE)
    if found is None or not _REVISION.fullmatch(found.revision or "main"):
        raise UsageError(
            f"{ascii(text)[1:-1]}: no address of a recipe; expected hf://USER/REPO[@REVISION][/FILE.yaml], "
            "https://HOST/…/FILE.yaml[#sha256=HEX] or git+https://HOST/…[@REVISION][#FILE.yaml], without "
            "spaces, letters beyond ASCII, queries, user names and passwords"
        )
    return found
