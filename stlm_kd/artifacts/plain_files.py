"""Read plain files, and nothing that would block or never end: a pipe, a device, a socket; their sizes."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO


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
    """The bytes of a plain file; errors as ``open_plain``."""
    with open_plain(path) as file:
        return file.read()


def num_bytes(folder: Path, *, unshared: bool = False) -> int:
    """The size of a folder's files; with ``unshared``, of those that have one name only."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # gone meanwhile
                state = os.lstat(f"{place}/{name}")
                size += state.st_size if not unshared or state.st_nlink == 1 else 0
    return size
