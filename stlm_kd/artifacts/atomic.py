"""What is written appears whole or not at all, and a full disk is one message.

A file or folder is written beside its place as ``.<name>.<process>.unfinished`` and renamed. What a killed
process left under such a name is removed by whoever next has the folder to itself.
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
    """Where to write a file or folder, which takes the place of ``target`` if the block ends well.

    A file takes the place of a file alone, and a folder that of a folder.

    Raises:
        OSError: It cannot be written; nothing is left of it, and ``target`` is as it was.
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
        unfinished.replace(target)  # refused by the system where a folder would replace a file
    finally:
        remove(unfinished)


def unfinished_name(target: Path) -> Path:
    """Where this process writes what is not whole yet, or not to stay; see ``clear_unfinished_for``."""
    return target.with_name(f".{target.name}.{os.getpid()}{_UNFINISHED}")


def is_full_disk(error: BaseException) -> bool:
    """Whether a disk is full, or a quota or limit used up."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def system_errors(place: Path) -> Iterator[None]:
    """Raise as ``OSError`` what libraries tell of the system's errors in words alone.

    Those written in Rust do (safetensors, tokenizers: a bare ``Exception``), and ``shutil.copytree``.
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
    """Turn the errors of a full disk, or of a quota or limit that is used up, into one message.

    Raises:
        MissingResourceError: There was one; ``place`` is named where the error does not say more.
    """
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise MissingResourceError(
            f"{error.filename or place}: cannot be written ({error.strerror}). Free some space and give the "
            "same command again: what is finished is whole, and it goes on from there"
        ) from error


def clear_unfinished(folder: Path) -> None:
    """Remove what killed processes left in a folder, and below it, that the caller has to itself."""
    for left in [*folder.rglob(f".*{_UNFINISHED}")]:
        remove(left)


def clear_unfinished_for(target: Path) -> None:
    """Remove what killed processes left where they were writing ``target``, which the caller has to itself.

    Others may write beside it, and below what lies beside it, meanwhile.
    """
    for left in [*target.parent.glob(f".{glob.escape(target.name)}.*{_UNFINISHED}")]:
        remove(left)


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that the file appears whole or not at all."""
    with written_whole(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
