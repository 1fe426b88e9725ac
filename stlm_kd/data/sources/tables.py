"""Rows of tables: JSON, CSV, tab-separated values, Parquet and Arrow.

JSON and CSV have readers of our own: those of the libraries convert texts that look like numbers, misread
rows with too many or too few values, drop lone surrogates, and name no line.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.data.sources.files import MAX_CHARACTERS, kind_of, lines_of
from stlm_kd.errors import (
    DataError,
    MissingResourceError,
    StlmKdError,
    first_line,
    foreign_errors,
    one_line,
)

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, object]
"""One row of a table: the value of each column."""


def read_rows(
    path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Stream the rows of one table with their locations, for messages.

    ``columns`` are required in every row, ``optional`` ones are read if present, and others are allowed. The
    first line of a .csv or .tsv file names its columns. In a .csv file quoted values may contain commas and
    line ends; in a .tsv file quotes have no meaning. Raises DataError, which names the line, for malformed or
    truncated content, not UTF-8, or a missing or duplicate column; MissingResourceError if the file cannot be
    opened.
    """
    kind = kind_of(path)
    if kind == "json lines":
        return _json_lines(path, columns)
    if kind == "json":
        return _json_rows(path, columns)
    if kind == "parquet":
        return _parquet_rows(path, columns, optional)
    if kind == "arrow":
        return _arrow_rows(path, columns, optional)
    return _table_rows(path, columns, optional, tabs=kind == "tsv")


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _json_row(_parsed(line, place, "each line must be one JSON object"), place, columns)


def _json_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a JSON array, which is read into memory; or of JSON lines."""
    text = "".join(lines_of(path, longest=sys.maxsize - 1))
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, columns)
        return
    entries = _parsed(text, str(path), "expected an array of objects, or one object per line")
    assert isinstance(entries, list)
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: row {number}"
        yield place, _json_row(entry, place, columns)


def _parsed(text: str, place: str, expected: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=partial(_without_repeated_keys, place))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error}); {expected}") from error


def _json_row(row: object, place: str, columns: Sequence[str]) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"{place}: {type(row).__name__} found, expected a JSON object with a {columns[0]} field"
        )
    require_columns(place, columns, row)
    return row


def _without_repeated_keys(place: str, pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        _require_once(place, [key for key, _ in pairs])
    return row


def _table_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str], *, tabs: bool
) -> Iterator[tuple[str, Row]]:
    rows = _tab_separated(path) if tabs else _comma_separated(path)
    _, header = next(rows, (1, []))
    require_columns(f"{path}:1", columns, header)
    _require_once(f"{path}:1", [name for name in header if name in (*columns, *optional)])
    for number, values in rows:
        if len(values) != len(header):
            separator = "tabs" if tabs else "commas (quote a text that contains some)"
            raise DataError(
                f"{path}:{number}: {len(values)} values found, but line 1 names {len(header)} columns; "
                f"separate values by {separator}"
            )
        yield f"{path}:{number}", dict(zip(header, values, strict=True))


def _require_once(place: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(
                f"{place}: column {one_line(name)} is named twice; expected different names; "
                "rename or remove one of the two"
            )


def _tab_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line number and values of each non-empty line."""
    for number, line in enumerate(lines_of(path), start=1):
        if values := line.removesuffix("\n"):
            yield number, values.split("\t")


def _comma_separated(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line and the values of each non-empty row."""
    rows = csv.reader(lines_of(path), strict=True)
    while True:
        begin = rows.line_num + 1
        try:
            values = _next_row(rows)
        except csv.Error as error:
            raise DataError(
                f"{path}:{begin}: not a row of a table ({error}); expected values separated by commas, "
                f'quoted if they contain commas or line ends, with quotes doubled ("") and at most '
                f"{MAX_CHARACTERS:,} characters each"
            ) from error
        if values is None:
            return
        if values:
            yield rows.line_num, values


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row, with values of up to ``MAX_CHARACTERS``; sets and restores the process-wide limit."""
    before = csv.field_size_limit(MAX_CHARACTERS)
    try:
        return next(rows, None)
    finally:
        csv.field_size_limit(before)


def _parquet_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    from pyarrow.parquet import ParquetFile

    number = 0
    with _arrow_errors(path, "Parquet"), ParquetFile(path) as file:
        names = file.schema_arrow.names
        require_columns(str(path), columns, names)
        wanted = [name for name in names if name in (*columns, *optional)]
        _require_once(str(path), wanted)
        for batch in file.iter_batches(batch_size=1024, columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}: row {number}", row


def _arrow_rows(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    from datasets import Dataset

    with _arrow_errors(path, "Arrow stream"):
        yield from dataset_rows(Dataset.from_file(str(path)), str(path), columns, optional)


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    def as_ours(error: BaseException) -> StlmKdError:
        if isinstance(error, OSError):
            return MissingResourceError(f"{path}: cannot be read ({error})")
        return DataError(f"{path}: not a complete {kind} file ({first_line(error)}); fetch it again")

    with foreign_errors(as_ours):
        yield


def dataset_rows(
    table: Dataset, place: str, columns: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """The rows of a data set of the ``datasets`` library, as ``read_rows``; it reads a thousand at a time."""
    require_columns(place, columns, table.column_names)
    wanted = [name for name in table.column_names if name in (*columns, *optional)]
    number = 0
    for batch in table.select_columns(wanted).iter(batch_size=1000):
        for values in zip(*(batch[name] for name in wanted), strict=True):
            number += 1
            yield f"{place}: row {number}", dict(zip(wanted, values, strict=True))


def require_columns(place: str, columns: Iterable[str], found: Collection[str]) -> None:
    """Refuse a table that lacks one of these columns (DataError, which lists those that it has)."""
    for column in columns:
        if column not in found:
            listed = one_line(", ".join(sorted(found))) or "none"
            raise DataError(f"{place}: no column {column}; found: {listed}; name one of them")


def column_texts(rows: Iterable[tuple[str, Row]], column: str) -> Iterator[str]:
    """The texts of one column of rows, without blank ones; errors as ``text_value``."""
    for place, row in rows:
        yield from text_value(row[column], f"{place}, column {column}")


def text_value(value: object, place: str) -> Iterator[str]:
    """A column's text, nothing if blank; DataError for null, another type, or a lone surrogate."""
    if value is None:
        raise DataError(f"{place}: null found, expected text; fill it in or remove the row")
    if not isinstance(value, str):
        raise DataError(f"{place}: {type(value).__name__} found, expected text")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: a lone surrogate at character {error.start}, which UTF-8 cannot encode; remove it"
            ) from error
    if value.strip():
        yield value


def shown(value: object) -> str:
    """A value formatted for messages, truncated after 40 characters."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
