"""Hashes of files, remembered between commands while the files are unchanged; manifests of a folder's files.

``known_hash`` reads a file once: hash, size, inode and times are appended to one store in the user's cache
folder. A file that was replaced or written to has another inode or change time, which programs cannot set
back, so it is read again. A lost or damaged store costs reading, never a wrong hash: lines have checksums.
A disk that loses bytes changes no time: ``hashed_anew`` reads every file again. Of several processes of a
command the main one hashes, and the others take over what it found.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from stlm_kd.activity import advanced, doing
from stlm_kd.artifacts.atomic import kind_at, open_plain, parse_json, reading
from stlm_kd.distributed import hand_over

Algorithm = Literal["sha256", "git"]
"""SHA-256 of the bytes, or the SHA-1 by which git names the file's content."""

CACHE = "STLM_KD_CACHE"
"""The environment variable with the folder of what commands remember; it may be deleted at any time."""

ANEW = "STLM_KD_VERIFY"
"""The environment variable that makes this process and its children hash every file again."""

SEAL, _SEALED = "sha256", "sealed"
"""The keys of a manifest's own hash, and of the mark that it has one; earlier versions wrote neither."""

_PART = re.compile(r"[^\0-\x1f\x7f\\/\ud800-\udfff]{1,255}")
"""A file's or folder's name in a manifest."""

_LONGEST_NAME = 4096
_MAX_LINES = 20_000
_SETTLED_NS = 2_000_000_000
"""A younger file may change again within the resolution of its times, so its hash is not stored."""

_WORTH_WAITING = 1 << 28
"""The bytes of files whose hashing takes about as long as waiting until they are settled."""

_Stamp = tuple[int, int, int, int]
_Key = tuple[str, Algorithm]
_known: dict[_Key, tuple[_Stamp, str]] = {}
_new: list[tuple[_Key, _Stamp, str]] = []  # what the main process has not told the others yet
_loaded: dict[Path, int] = {}  # the bytes of each store that were read


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, without caching.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(path, hashlib.sha256())


def git_sha1(path: Path) -> str:
    """The SHA-1 by which git names a file's content, in hexadecimal, without caching.

    Raises:
        OSError: The file cannot be read.
    """
    return _digest(path, hashlib.sha1(b"blob %d\0" % path.stat().st_size))  # nosec B324  # git's choice


def known_sha256(path: Path) -> str:
    """Like ``sha256``, remembered while the file is unchanged."""
    return known_hash(path, "sha256")


def known_hash(path: Path, algorithm: Algorithm) -> str:
    """A file's hash in hexadecimal, remembered while the file is unchanged.

    Raises:
        OSError: The file cannot be read.
    """
    path = path.absolute()
    _load()
    stamp = _stamp(path)
    key = str(path), algorithm
    if key in _known and _known[key][0] == stamp:
        return _known[key][1]
    digest = sha256(path) if algorithm == "sha256" else git_sha1(path)
    if _stamp(path) == stamp:  # it did not change while it was read
        _learn(key, stamp, digest)
    return digest


def remember(folder: Path, digests: Mapping[str, str]) -> None:
    """Note the SHA-256 of files that the caller wrote and hashed, where nobody else could write to them.

    If the files are so large that waiting until their hashes can be stored takes less time than reading them
    again in another process, it waits, at most two seconds.
    """
    paths = {(folder / name).absolute(): digest for name, digest in digests.items()}
    stamps = {path: _stamp(path) for path in paths}
    if sum(stamp[0] for stamp in stamps.values()) > _WORTH_WAITING:
        youngest = max(max(stamp[2:]) for stamp in stamps.values())
        time.sleep(min(max(youngest + _SETTLED_NS - time.time_ns(), 0) / 1e9, 2) + 0.01)
    for path, digest in paths.items():
        if _stamp(path) == stamps[path]:
            _learn((str(path), "sha256"), stamps[path], digest)


def _learn(key: _Key, stamp: _Stamp, digest: str) -> None:
    _known[key] = stamp, digest
    _new.append((key, stamp, digest))
    if time.time_ns() - max(stamp[2:]) > _SETTLED_NS:
        _append(key, stamp, digest)


@contextmanager
def linked(links: Mapping[Path, Path]) -> Iterator[None]:
    """Keep what is known of files while the block links them: that changes their change times.

    Size, inode and time of modification must stay: only a program that writes to a file within the block and
    sets its time back is not noticed.

    Args:
        links: The new name of each file. If it becomes another file, nothing is known of it.

    Raises:
        OSError: A file cannot be found.
    """
    _load()
    names = {source.absolute(): target.absolute() for source, target in links.items()}
    before = {source: _stamp(source) for source in names}
    yield
    with suppress(OSError):  # what is not kept is read again
        for source, old in before.items():
            known = _known.get((str(source), "sha256"))
            if known is not None and known[0] == old:
                _keep(known[1], source, names[source], old)


def _keep(digest: str, source: Path, target: Path, old: _Stamp) -> None:
    """Remember the hash of a file that was linked: by its own name, the new one and others that are known."""
    new = _stamp(source)
    if new[:3] != old[:3]:
        return
    known = [Path(name) for (name, how), (stamp, _) in [*_known.items()] if stamp == old and how == "sha256"]
    for path in (*known, target):
        if path.is_file() and path.samefile(source):
            key: _Key = (str(path), "sha256")
            _known[key] = new, digest
            _new.append((key, new, digest))
            if time.time_ns() - new[2] > _SETTLED_NS:  # linking alone made its change time young
                _append(key, new, digest)


@contextmanager
def hashed_anew() -> Iterator[None]:
    """Forget what earlier commands hashed, here and in processes that the block starts."""
    before = os.environ.get(ANEW)
    os.environ[ANEW] = "1"
    _known.clear()
    _new.clear()
    try:
        yield
    finally:
        if before is None:
            del os.environ[ANEW]
        _loaded.clear()


def hashes_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files in a folder, by their relative paths, sorted."""
    return {path.relative_to(folder).as_posix(): known_sha256(path) for path in sorted(files)}


def recorded_files(files: Mapping[str, str]) -> Mapping[str, str]:
    """The hashes of a manifest by name.

    Raises:
        ValueError: One is no hash, or of no file inside the folder: its name is absolute, has ``..``,
            backslashes or what no name has, or is too long.
    """
    for name, digest in files.items():
        parts = name.split("/")
        is_inside = not {".", ".."} & {*parts} and all(map(_PART.fullmatch, parts))
        if not is_inside or len(name.encode()) > _LONGEST_NAME:
            raise ValueError(f"{name[:40]!r}: no name of a file in the folder")
        if not isinstance(digest, str):
            raise ValueError(f"{name}: without its hash")
    return files


def first_change(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file that does not have its hash, and how it differs; None if all have it.

    Raises:
        MissingResourceError: A file is there, but cannot be read.
    """
    for name, digest in files.items():
        path = folder / name
        try:
            with reading(path):
                if known_sha256(path) == digest:
                    continue
        except OSError:
            return f"{name}: {kind_at(path) + ' is there' if os.path.lexists(path) else 'gone'}"
        return f"{name}: changed"
    return None


def sealed(values: Mapping[str, object]) -> dict[str, object]:
    """A manifest's values with the hash of them all."""
    marked = {**values, _SEALED: True}
    return {**marked, SEAL: _seal(marked)}


def unsealed(values: object, *, is_required: bool = True) -> dict[str, Any]:
    """A manifest's values without their hash, which those of earlier versions lack if it is not required.

    Raises:
        ValueError: They are not those that were hashed.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no mapping")
    plain = {name: value for name, value in values.items() if name != SEAL}
    if (is_required or {SEAL, _SEALED} & values.keys()) and values.get(SEAL) != _seal(plain):
        raise ValueError("its content does not have the hash that is stated in it")
    return {name: value for name, value in plain.items() if name != _SEALED}


def _seal(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def cache_folder() -> Path:
    """The folder of what commands remember: ``$STLM_KD_CACHE``, or ``stlm-kd`` in the user's cache folder."""
    own, general = os.environ.get(CACHE), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(general) if general else Path.home() / ".cache") / "stlm-kd"


def _digest(path: Path, digest: hashlib._Hash) -> str:
    with open_plain(path) as file, doing(f"hashing {path.name}"):
        while block := file.read(1 << 20):
            digest.update(block)
            advanced()
    return digest.hexdigest()


def _stamp(path: Path) -> _Stamp:
    state = path.stat()
    return state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns


def _store() -> Path:
    return cache_folder() / "hashes.jsonl"


def _load() -> None:
    """Read what was added to the store, and shorten it if it is long; damaged lines are ignored."""
    store = _store()
    if os.environ.get(ANEW):
        return
    read = _loaded.get(store, 0)
    try:
        if (size := store.stat().st_size) == read:
            return
        with open_plain(store) as file:
            file.seek(read if read < size else 0)  # it was shortened by another process
            lines = file.read().splitlines()
            _loaded[store] = file.tell()
    except OSError:
        return
    for line in lines[-_MAX_LINES:]:
        checksum, _, text = line.partition(b" ")
        if checksum == _checksum(text):
            with suppress(ValueError, TypeError):
                path, algorithm, stamp, digest = parse_json(text)
                _known[path, algorithm] = tuple(stamp), digest
    if len(lines) > _MAX_LINES:
        shorter = store.with_name(f".{store.name}.{os.getpid()}")
        try:
            shorter.write_bytes(b"\n".join(lines[-_MAX_LINES // 2 :]))
            shorter.replace(store)
        except OSError:
            return


def _told() -> list[tuple[_Key, _Stamp, str]]:
    """What this process hashed since it was last asked."""
    found = [*_new]
    _new.clear()
    return found


def _take_over(found: list[tuple[_Key, _Stamp, str]]) -> None:
    """Know what the main process hashed, of files that have the same stamp here."""
    _known.update({key: (stamp, digest) for key, stamp, digest in found})


hand_over(_told, _take_over)


def _append(key: _Key, stamp: _Stamp, digest: str) -> None:
    """Add a line to the store in one write, which other processes cannot interrupt; no error if it fails."""
    text = json.dumps([*key, stamp, digest]).encode()
    try:
        _store().parent.mkdir(parents=True, exist_ok=True)
        if _store().exists() and not _store().is_file():  # a pipe, which would block
            return
        with _store().open("ab", buffering=0) as file:
            file.write(b"\n%s %s" % (_checksum(text), text))  # begins a line even after a cut one
    except OSError:
        return


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)
