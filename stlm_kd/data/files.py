"""Text files: what is in them (documents of plain text, rows of JSON lines, CSV, Parquet), and hashes."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Literal, cast

from stlm_kd.errors import DataError, EnvironmentFault

Documents = Literal["article", "line", "blank-line", "file"]
"""How a plain text file is cut into documents; see ``cut``."""

MAX_CHARACTERS = 1 << 24
"""The longest line and the longest document of a text file that are read into memory: 16 Mi characters."""

Kinds = Mapping[str, str]
"""What is in a file, by how its name ends."""

_TABLES: Kinds = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
TEXTS: Kinds = {".txt": "text", **_TABLES}
"""Files that hold texts."""

ROWS: Kinds = {**_TABLES, ".csv": "csv", ".tsv": "tsv"}
"""Files that hold rows of named columns."""

Row = Mapping[str, object]
"""One row of a table: what stands in each column."""

_OPENERS: dict[str, Callable[..., IO[str]]] = {
    ".gz": cast("Callable[..., IO[str]]", gzip.open),
    ".xz": cast("Callable[..., IO[str]]", lzma.open),
}
_TITLE = re.compile(r"^ ?= [^=].* = ?$")


def text_files(path: Path, *, kinds: Kinds = TEXTS) -> list[Path]:
    """The file itself, or the files of these kinds below a folder by their names; hidden ones left out.

    Raises:
        EnvironmentFault: Nothing is there.
        DataError: A file of an unknown kind, or a folder without a file of a known kind.
    """
    try:
        exists = path.exists()
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error
    if not exists:
        raise EnvironmentFault(
            f"{path}: no such file or folder (seen from {Path.cwd()}); give one that exists"
        )
    if path.is_file():
        if kind_of(path, kinds=kinds) is None:
            raise DataError(f"{path}: unknown kind of file; known: {_listed(kinds)}")
        return [path]
    inside = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    shown = [file for file in inside if not any(part.startswith(".") for part in file.parts)]
    found = sorted((file for file in shown if kind_of(file, kinds=kinds)), key=lambda file: file.as_posix())
    if not found:
        raise DataError(f"{path}: {len(shown)} files, but none of a known kind; known: {_listed(kinds)}")
    return [path / file for file in found]


def kind_of(path: Path, *, kinds: Kinds = TEXTS) -> str | None:
    """What a file's name says that it holds: ``text``, ``json``, ``parquet``, …; None where it is unknown."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _OPENERS:
        inner = kinds.get(suffixes[-2]) if len(suffixes) > 1 else None
        return inner if inner != "parquet" else None
    return kinds.get(suffixes[-1]) if suffixes else None


def _listed(kinds: Kinds) -> str:
    """As in "txt, jsonl and ndjson (each also .gz or .xz), parquet"."""
    names = [ending.removeprefix(".") for ending in kinds if ending != ".parquet"]
    return f"{', '.join(names[:-1])} and {names[-1]} (each also .gz or .xz), parquet"


def read(path: Path, *, column: str, documents: Documents) -> Iterator[str]:
    """The documents of one file, none of them blank.

    Text comes out of plain files without the white space around each document; a column's values are left
    as they are.

    Raises:
        DataError: Malformed or truncated content, not UTF-8, or a column that is not there; names the line.
        EnvironmentFault: The file cannot be opened.
    """
    kind = kind_of(path)
    if kind == "text":
        yield from cut(_lines(path), documents=documents, place=str(path))
    elif kind == "json":
        yield from _json_column(path, column)
    else:
        yield from _parquet_column(path, column)


def cut(lines: Iterable[str], *, documents: Documents, place: str) -> Iterator[str]:
    r"""Documents made of the lines of a plain text.

    ``line``: each line is one. ``blank-line``: each run of lines between blank lines is one.
    ``file``: all lines are one. ``article``, the default of a source: all lines are one, but where a line
    `` = Title = `` stands between blank lines (as in WikiText) a new document begins with it, so that text
    without such titles, a novel for instance, stays in one piece.

    >>> list(cut([" = A = \n", "\n", "a\n", "\n", " = B = \n", "\n", "b\n"], documents="article", place="x"))
    ['= A = \n\na', '= B = \n\nb']
    """
    pending: list[str] = []
    size = 0
    for line, begins in _beginnings(lines, documents):
        if begins:
            yield from _joined(pending)
            pending, size = [], 0
        pending.append(line)
        size += len(line)
        if size > MAX_CHARACTERS:
            raise DataError(
                f"{place}: a document of more than {MAX_CHARACTERS:,} characters (documents: {documents}); "
                "choose documents: line or blank-line"
            )
    yield from _joined(pending)


def _joined(lines: list[str]) -> Iterator[str]:
    text = "".join(lines).strip()
    if text:
        yield text


def _beginnings(lines: Iterable[str], documents: Documents) -> Iterator[tuple[str, bool]]:
    """Each line, and whether a document begins with it."""
    if documents == "article":
        yield from _title_beginnings(lines)
        return
    for line in lines:
        yield line, documents == "line" or (documents == "blank-line" and not line.strip())


def _title_beginnings(lines: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """As ``_beginnings``, one line late, because a title is known by the blank line after it."""
    before, current = "", ""
    for after in lines:
        yield current, _is_title(before, current, after)
        before, current = current, after
    yield current, _is_title(before, current, "")


def _is_title(before: str, line: str, after: str) -> bool:
    return not before.strip() and not after.strip() and bool(_TITLE.match(line.rstrip("\n")))


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, decompressed, with their ends (as ``\\n``)."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    number = 0
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
        raise DataError(
            f"{path}: not UTF-8 after line {number} ({error.reason}); convert it to UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path}: broken or cut short after line {number} ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error.strerror or error})") from error


def read_rows(
    path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Each row of one table with the place where it stands, for messages.

    A row of JSON lines or of a .csv or .tsv file may have other columns besides. A .csv or .tsv file begins
    with the names of its columns; in a .csv file quotes may hold commas and ends of lines, in a .tsv file
    they mean nothing.

    Args:
        path: Of a kind in ``ROWS``.
        columns: Every row must have these.
        optional: These are read where they are there.

    Raises:
        DataError: Malformed or truncated content, not UTF-8, or a column that is not there; names the line.
        EnvironmentFault: The file cannot be opened.
    """
    kind = kind_of(path, kinds=ROWS)
    if kind == "json":
        yield from _json_rows(path, columns)
    elif kind == "parquet":
        yield from _parquet_rows(path, columns, optional)
    else:
        yield from _table_rows(path, columns, tabs=kind == "tsv")


def _json_column(path: Path, column: str) -> Iterator[str]:
    for place, row in _json_rows(path, [column]):
        yield from text_value(row[column], f"{place}, column {column}")


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); each line must be one JSON object") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{place}: {type(row).__name__} found, expected a JSON object with a {columns[0]} field"
            )
        require_columns(place, columns, row)
        yield place, row


def _table_rows(path: Path, columns: Sequence[str], *, tabs: bool) -> Iterator[tuple[str, Row]]:
    lines = _lines(path)
    if tabs:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, [])
        require_columns(f"{path}:1", columns, header)
        for values in rows:
            place = f"{path}:{rows.line_num}"
            if not values:
                continue
            if len(values) != len(header):
                raise DataError(
                    f"{place}: {len(values)} values found, but line 1 names {len(header)} columns"
                )
            yield place, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: not a row of a table ({error})") from error


def _parquet_column(path: Path, column: str) -> Iterator[str]:
    for place, row in _parquet_rows(path, [column]):
        yield from text_value(row[column], f"{place}, column {column}")


def _parquet_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            require_columns(str(path), columns, names)
            wanted = [name for name in names if name in (*columns, *optional)]
            for batch in file.iter_batches(batch_size=1024, columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error}); fetch it again") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read ({error})") from error


def require_columns(place: str, columns: Iterable[str], found: Collection[str]) -> None:
    """Refuse a table without one of these columns, and say which it has.

    Raises:
        DataError: One is not there.
    """
    for column in columns:
        if column not in found:
            listed = ", ".join(sorted(found)) or "none"
            raise DataError(f"{place}: no column {column}; found: {listed}; name one of them")


def text_value(value: object, place: str) -> Iterator[str]:
    """A column's text, or nothing where it is null or blank.

    Raises:
        DataError: Not a text, or one with half of a surrogate pair, which has no UTF-8 form.
    """
    if value is None:
        return
    if not isinstance(value, str):
        raise DataError(f"{place}: {type(value).__name__} found, expected text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{place}: half of a surrogate pair at character {error.start}") from error
    if value.strip():
        yield value


def expanded(path: str) -> Path:
    """A path with ``~`` and ``$VARIABLES`` filled in, such as ``$STLM_KD_DATA/lm/train.txt.gz``.

    Raises:
        EnvironmentFault: A variable is not set.
    """
    filled = os.path.expandvars(path)
    unset = re.findall(r"\$(?:\{(\w+)\}|(\w+))", filled)
    if unset:
        names = ", ".join(braced or plain for braced, plain in unset)
        raise EnvironmentFault(
            f"{path}: the environment variable {names} is not set; set it or give a full path"
        )
    return Path(filled).expanduser()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal, read anew.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """As ``sha256``, but within one process a file is read once for each size and time of its last change."""
    found = path.stat()
    return _sha256_of_state(path.resolve(), found.st_size, found.st_mtime_ns)


@cache
def _sha256_of_state(path: Path, size: int, changed: int) -> str:
    return sha256(path)
