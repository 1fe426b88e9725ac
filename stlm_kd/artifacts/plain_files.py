"""Read plain files, and nothing that would block or never end: a pipe, a device, a socket."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading.

    Raises:
        OSError: It cannot be opened, or is no plain file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a plain file", str(path))
    return file


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file; errors as ``open_plain``."""
    with open_plain(path) as file:
        return file.read()


def read_plain_text(path: Path) -> str:
    """The text of a plain UTF-8 file; UnicodeDecodeError, or errors as ``open_plain``."""
    return read_plain(path).decode("utf-8")
