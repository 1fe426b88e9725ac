"""Which program this is: its version, commit and files, and the wheel that it was installed from."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from stlm_kd.artifacts.atomic import parse_json
from stlm_kd.artifacts.hashing import sha256

UNKNOWN = "unknown"
DIRTY = " dirty"
"""Ends the commit of a checkout whose files are not those of the commit."""

_TOPS = ("stlm_kd", "stlm_kd.cli", "stlm_kd.eval", "stlm_kd.recipes")
_MAX_SOURCE = 64 * 1024**2
"""Maximum number of bytes of a program's files."""

_SUFFIXES = {".py", ".yaml", ".json", ".j2", ".css"}


@dataclass(frozen=True, slots=True)
class Program:
    """What is known of a program; None for what is not.

    Attributes:
        version: Its version.
        code: Its commit as ``git:…``, followed by `` dirty`` if the program's files are not those of the
            commit; known of a checkout, and of an installation from a repository.
        wheel: Hash of the wheel that it was installed from, as the installer noted it.
        source: Hash of its own files, the same for a checkout, an installation and a wheel.
    """

    version: str
    code: str | None = None
    wheel: str | None = None
    source: str | None = None


@cache
def program() -> Program:
    """The running program, as its files are at the first call."""
    folders = [_folder(name) for name in _TOPS]
    files = {
        f"{top.replace('.', '/')}/{path.relative_to(folder).as_posix()}": sha256(path)
        for top, folder in zip(_TOPS, folders, strict=True)
        for path in folder.rglob("*")
        if path.suffix in _SUFFIXES and not _is_of_another(path.relative_to(folder), top)
    }
    try:
        found = distribution("stlm-kd")
    except PackageNotFoundError:
        return Program(UNKNOWN, _commit(folders[0].parent), source=_source(files))
    origin = _origin(found)
    commit = origin.get("vcs_info", {}).get("commit_id")
    return Program(
        found.version,
        f"git:{commit}" if commit else _commit(folders[0].parent),
        _wheel_hash(origin.get("archive_info", {})),
        _source(files),
    )


def program_in(wheel: Path) -> Program:
    """The program in a wheel.

    Raises:
        OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError: It cannot be read.
        ValueError: It is too large.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).suffix in _SUFFIXES]
        size = sum(archive.getinfo(name).file_size for name in names)
        if size > _MAX_SOURCE:
            raise ValueError(f"{size:,} bytes of source; expected at most {_MAX_SOURCE:,}")
        files = {
            name: hashlib.sha256(archive.read(name)).hexdigest()
            for name in names
            if name.startswith("stlm_kd/")
        }
    _, version, *_ = f"{wheel.name}--".split("-")
    return Program(version, wheel=f"sha256:{sha256(wheel)}", source=_source(files))


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is a package"
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def _is_of_another(path: Path, top: str) -> bool:
    """Whether a file belongs to a package at the top of the repository, to which ``stlm_kd`` has links."""
    return top == "stlm_kd" and f"stlm_kd.{path.parts[0]}" in _TOPS


def _source(files: dict[str, str]) -> str:
    """The hash of what ``sha256sum`` prints for files, by name."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _origin(found: Distribution) -> dict[str, Any]:
    """``direct_url.json``, which installers write for all that is not from an index."""
    read = parse_json(found.read_text("direct_url.json") or "{}")
    return read if isinstance(read, dict) else {}


def _wheel_hash(archive: dict[str, Any]) -> str | None:
    """The hash of an archive that was installed; older installers write it as ``sha256=…``."""
    known = archive.get("hashes", {}).get("sha256") or archive.get("hash", "").removeprefix("sha256=")
    return f"sha256:{known}" if known else None


def _commit(root: Path) -> str | None:
    """The commit of a checkout; None for other folders, and without git."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        changes = _git(root, "status", "--porcelain", "--", *(top.rpartition(".")[2] for top in _TOPS))
    except (OSError, ValueError, subprocess.SubprocessError):  # ValueError: not UTF-8
        return None
    return f"git:{commit}{DIRTY if changes else ''}"


def _git(root: Path, *words: str) -> str:
    asked = ["git", "-C", str(root), *words]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60, env=plain).stdout
