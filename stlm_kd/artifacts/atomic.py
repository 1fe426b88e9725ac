"""Files: written atomically, with one error message for a full disk; read if they are plain.

A file or folder is written next to its target as ``.<name>.<process>.unfinished`` and renamed. The next
process that locks the folder removes the unfinished files of a killed process, and puts back a folder that
was moved aside (``.replaced``) but not replaced.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from stlm_kd.errors import MissingResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFINISHED = ".unfinished"
_REPLACED = ".replaced"


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces ``target`` if the block succeeds.

    A file only replaces a file, and a folder a folder. If writing fails, ``target`` is unchanged.
    """
    unfinished, replaced = unfinished_name(target), None
    remove(unfinished)
    try:
        with system_errors(target):
            yield unfinished
        if target.is_dir() and unfinished.is_dir():
            replaced = unfinished.with_suffix(_REPLACED)
            target.replace(replaced)
        elif os.path.lexists(target) and (unfinished.is_dir() or (target.exists() and not target.is_file())):
            raise FileExistsError(errno.EEXIST, f"{kind_at(target)} is there", str(target))
        unfinished.replace(target)  # the system raises an error if a folder would replace a file
    finally:
        remove(unfinished)
        if replaced is not None:
            _settle(replaced)


def unfinished_name(target: Path) -> Path:
    """The path of this process for unfinished or temporary files; see ``clear_unfinished_for``."""
    return target.with_name(f".{target.name}.{os.getpid()}{_UNFINISHED}")


def is_full_disk(error: BaseException) -> bool:
    """Whether the error means a full disk, or an exhausted quota or limit."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def system_errors(place: Path) -> Iterator[None]:
    """Convert errors that contain a system error only in their text to ``OSError``.

    Rust libraries (safetensors, tokenizers) raise a bare ``Exception``; ``shutil.copytree`` does it as well.
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)|\[Errno (\d+)\]", str(error))
        if number is None or (isinstance(error, OSError) and error.errno is not None):
            raise
        code = int(number[1] or number[2])
        raise OSError(code, os.strerror(code), str(place)) from error


@contextmanager
def storage_as_error(place: Path) -> Iterator[None]:
    """Turn errors of the system on files beside and below ``place`` into MissingResourceError.

    Those of a full disk, quota or limit are turned wherever the file is, and if no file is named.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            if not _is_beside(error.filename, place):
                raise
            fault = f"{error.filename}: cannot be read or written ({error.strerror}). Make {place.parent} "
            raise MissingResourceError(
                f"{in_the_way(error) or fault + 'writable'}, and repeat the command: it uses what is there, "
                "and makes again what is gone"
            ) from error
        raise MissingResourceError(
            f"{error.filename or place}: cannot be written ({error.strerror}). Free some space and repeat "
            "the command: finished results are intact, and it resumes from there"
        ) from error


def in_the_way(error: OSError) -> str | None:
    """What is in the place of a file or folder, and that it has to go; None if nothing is."""
    if error.errno not in _DAMAGED - {errno.ENOENT} or not isinstance(error.filename, str):
        return None
    path = Path(error.filename)
    if error.errno == errno.EINVAL and path.is_file():  # which is too large
        return None
    ways = (one for one in (*reversed(path.parents), path) if os.path.lexists(one) and not one.is_dir())
    place = next(ways, path)
    return f"{place}: in the way is {kind_at(place)}; move it away" if os.path.lexists(place) else None


def kind_at(path: Path) -> str:
    """What is at a path, in words."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere"
    return _KINDS.get(stat.S_IFMT(mode), "a device")


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def _is_beside(name: object, place: Path) -> bool:
    return isinstance(name, str) and Path(name).absolute().is_relative_to(place.parent.absolute())


def remedy(error: BaseException) -> str:
    """What to do about a file that cannot be written: "free some space", unless the reason is another one."""
    if not isinstance(error, OSError) or error.errno is None or is_full_disk(error):
        return "free some space"
    return "keep its folder in place" if error.errno == errno.ENOENT else "make its folder writable"


def clear_unfinished(folder: Path) -> None:
    """Remove unfinished files of killed processes in and below a folder that the caller has locked."""
    for left in [*folder.rglob(f".*{_UNFINISHED}"), *folder.rglob(f".*{_REPLACED}")]:
        _settle(left)


def clear_unfinished_for(target: Path) -> None:
    """Remove unfinished files of killed processes for a locked ``target``; its neighbours may be in use."""
    name = glob.escape(target.name)
    for left in [path for end in (_UNFINISHED, _REPLACED) for path in target.parent.glob(f".{name}.*{end}")]:
        _settle(left)


def _settle(left: Path) -> None:
    """Remove what a writer left; a replaced folder is put back if there is no other in its place."""
    target = left.with_name(left.name[1:].rsplit(".", 2)[0])
    if left.suffix == _REPLACED and not target.exists():
        left.replace(target)
    else:
        remove(left)


def clear_abandoned_for(target: Path) -> None:
    """Like ``clear_unfinished_for`` without a lock: what living processes of this machine write stays."""
    for left in [*target.parent.glob(f".{glob.escape(target.name)}.*{_UNFINISHED}")]:
        pid = left.name.removesuffix(_UNFINISHED).rpartition(".")[2]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            remove(left)
        except PermissionError:  # another user's process
            continue


def remove(path: Path) -> None:
    """Delete a file or a folder, if it exists and can be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


_DAMAGED = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EINVAL, errno.ENXIO
}  # fmt: skip
"""Nothing is there, or what ``open_plain`` refuses."""

LARGEST = 1024**3
"""Maximum number of bytes of a file that is read whole."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors on reading a finished result into one message, unless it is gone or no plain file.

    Those pass as ``OSError``: they are damage. Storage that does not answer, or permissions, are not.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DAMAGED:
            raise
        raise MissingResourceError(
            f"{error.filename or path}: cannot be read ({error.strerror or type(error).__name__}), so it "
            "cannot be checked, and nothing is made again. Make it readable and repeat the command; "
            "or delete it, if it is lost"
        ) from error


@contextmanager
def writing(path: Path, option: str = "--output-dir") -> Iterator[None]:
    """Turn errors on writing to a path into one message; ``option`` is the one that chose the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        fault = f"{way}, or" if (way := in_the_way(error)) else f"{path}: cannot be written ({reason});"
        raise MissingResourceError(f"{fault} choose another {option}") from error


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file; errors as ``open_plain``, and OSError if it is too large."""
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > LARGEST:
            raise OSError(errno.EINVAL, f"more than {LARGEST:,} bytes", str(path))
        return file.read(LARGEST)


def read_json(path: Path, *, nan: bool = False) -> Any:
    """The JSON document in a plain file; errors as ``read_plain`` and ``parse_json``."""
    return parse_json(read_plain(path), nan=nan)


def parse_json(text: bytes | str, *, nan: bool = False) -> Any:
    """A JSON document from outside this process.

    Args:
        text: The document.
        nan: Whether NaN and infinities are read, which are no JSON, but values of scores.

    Raises:
        ValueError: It is none, has a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=float if nan else _no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{twice[:40]!r} is there twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def num_bytes(folder: Path, *, unshared: bool = False) -> int:
    """The size of a folder's files; with ``unshared``, of those that have one name only."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                state = os.lstat(f"{place}/{name}")
                size += state.st_size if not unshared or state.st_nlink == 1 else 0
    return size
