"""Atomic writing of files and folders, and one error message for a full disk.

A file or folder is written next to its target as ``.<name>.<process>.unfinished`` and renamed. The next
process that locks the folder removes the unfinished files of a killed process.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stlm_kd.errors import MissingResourceError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNFINISHED = ".unfinished"


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces ``target`` if the block succeeds.

    A file only replaces a file, and a folder a folder. If writing fails, ``target`` is unchanged.
    """
    unfinished = unfinished_name(target)
    remove(unfinished)
    try:
        with system_errors(target):
            yield unfinished
        if target.is_dir() and unfinished.is_dir():
            shutil.rmtree(target)
        elif target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "not a file is there", str(target))
        unfinished.replace(target)  # the system raises an error if a folder would replace a file
    finally:
        remove(unfinished)


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
def full_disk_as_error(place: Path) -> Iterator[None]:
    """Turn errors of a full disk, quota or limit into MissingResourceError, which names file or ``place``."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise MissingResourceError(
            f"{error.filename or place}: cannot be written ({error.strerror}). Free some space and repeat "
            "the command: finished results are intact, and it resumes from there"
        ) from error


def clear_unfinished(folder: Path) -> None:
    """Remove unfinished files of killed processes in and below a folder that the caller has locked."""
    for left in [*folder.rglob(f".*{_UNFINISHED}")]:
        remove(left)


def clear_unfinished_for(target: Path) -> None:
    """Remove unfinished files of killed processes for a locked ``target``; its neighbours may be in use."""
    for left in [*target.parent.glob(f".{glob.escape(target.name)}.*{_UNFINISHED}")]:
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
    """Delete a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(path: Path, option: str = "--output-dir") -> Iterator[None]:
    """Turn errors on writing to a path into one message; ``option`` is the one that chose the path."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MissingResourceError(
            f"{path}: cannot be written ({reason}); choose another {option}"
        ) from error
