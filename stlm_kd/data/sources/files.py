"""Data files: finding them, their kinds, and their lines."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, cast

from stlm_kd.errors import DataError, MissingResourceError

MAX_CHARACTERS = 1 << 24
"""Maximum length of a line and of a document of a text file, which are read into memory: 16 Mi characters."""

Kinds = Mapping[str, str]
"""Kind of content by file name suffix."""

_TABLES: Kinds = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
TEXTS: Kinds = {".txt": "text", **_TABLES}
"""Files of text."""

ROWS: Kinds = {**_TABLES, ".csv": "csv", ".tsv": "tsv"}
"""Files of rows with named columns."""

_OPENERS: dict[str, Callable[..., IO[str]]] = {
    ".gz": cast("Callable[..., IO[str]]", gzip.open),
    ".xz": cast("Callable[..., IO[str]]", lzma.open),
}


def text_files(path: Path, *, kinds: Kinds = TEXTS) -> list[Path]:
    """The file itself, or all files of these kinds below a folder, sorted by name, without hidden ones.

    Raises:
        MissingResourceError: No such file or folder.
        DataError: A file of an unknown kind, a folder without files, or without one of a known kind.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not exists:
        raise MissingResourceError(
            f"{path}: no such file or folder (seen from {Path.cwd()}); give one that exists"
        )
    if path.is_file():
        if kind_of(path, kinds=kinds) is None:
            raise DataError(f"{path}: unknown kind of file; known: {_listed(kinds)}")
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    shown = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    found = sorted((file for file in shown if kind_of(file, kinds=kinds)), key=lambda file: file.as_posix())
    if not shown:
        raise DataError(
            f"{path}: an empty folder (hidden files do not count); put data there or give another folder"
        )
    if not found:
        raise DataError(f"{path}: {len(shown)} files, but none of a known kind; known: {_listed(kinds)}")
    return [path / file for file in found]


def kind_of(path: Path, *, kinds: Kinds = TEXTS) -> str | None:
    """The kind of content by the file's name: ``text``, ``json``, ``parquet``, …; None if unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        inner = kinds.get(suffixes[-2]) if len(suffixes) > 1 else None
        return inner if inner != "parquet" else None
    return kinds.get(suffixes[-1]) if suffixes else None


def _listed(kinds: Kinds) -> str:
    """As in "txt, jsonl and ndjson (each also .gz or .xz), parquet"."""
    names = [ending.removeprefix(".") for ending in kinds if ending != ".parquet"]
    return f"{', '.join(names[:-1])} and {names[-1]} (each also .gz or .xz), parquet"


def lines_of(path: Path) -> Iterator[str]:
    """Stream the lines of a text file, decompressed, with line ends (as ``\\n``).

    Raises:
        DataError: Not UTF-8, corrupt, or with a line of more than ``MAX_CHARACTERS``.
        MissingResourceError: The file cannot be read.
    """
    opener = _OPENERS.get(path.suffix.lower(), open)
    number = 0
    try:
        try:
            with opener(path, "rt", encoding="utf-8-sig") as file:
                while line := file.readline(MAX_CHARACTERS + 1):
                    number += 1
                    if len(line) > MAX_CHARACTERS:
                        raise DataError(
                            f"{path}:{number}: a line of more than {MAX_CHARACTERS:,} characters; split it"
                        )
                    yield line
        except UnicodeDecodeError as error:
            number = _whole_lines(path, opener)
            if opener is not open:
                _read_through(path, opener)  # verifies the checksum: corrupt content or another encoding
            raise DataError(
                f"{path}:{number + 1}: not UTF-8 ({error.reason}); convert the file to UTF-8"
            ) from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: corrupt or truncated after {number} complete lines ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror or error})") from error


def _whole_lines(path: Path, opener: Callable[..., IO[str]]) -> int:
    """Number of lines before the first one that is not UTF-8; Python's error comes up to a buffer early."""
    number = 0
    with opener(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
        while (piece := file.readline(MAX_CHARACTERS)) and not re.search("[\udc80-\udcff]", piece):
            number += piece.endswith("\n")
    return number


def _read_through(path: Path, opener: Callable[..., IO[str]]) -> None:
    with opener(path, "rb") as file:
        while file.read(MAX_CHARACTERS):
            pass


def expanded(path: str) -> Path:
    """A path with ``~`` and ``$VARIABLES`` filled in, such as ``$STLM_KD_DATA/lm/train.txt.gz``.

    Raises:
        MissingResourceError: A variable is not set.
    """
    filled = os.path.expandvars(path)
    unset = re.findall(r"\$(?:\{(\w+)\}|(\w+))", filled)
    if unset:
        names = ", ".join(braced or plain for braced, plain in unset)
        raise MissingResourceError(
            f"{path}: the environment variable {names} is not set; set it or give a full path"
        )
    return Path(filled).expanduser()
