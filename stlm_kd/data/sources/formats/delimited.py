"""Rows of .csv and .tsv files, whose first line names the columns.

In a .csv file quoted values may contain commas and line ends; in a .tsv file quotes have no meaning. A reader
of our own: those of libraries convert texts that look like numbers, misread rows with too many or too few
values, and name no line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from stlm_kd.data.sources.files import MAX_CHARACTERS, lines_of
from stlm_kd.data.sources.tables import Row, require_columns, require_once
from stlm_kd.errors import DataError
from stlm_kd.notes import note

_DOUBLED = re.compile(r'[^"]""[^"]')


def comma_separated(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a .csv file."""
    cure = "commas (quote a text that contains some)"
    return _named(_comma_values(path), path, columns, optional, cure)


def tab_separated(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a .tsv file."""
    return _named(_tab_values(path), path, columns, optional, "tabs (quotes have no meaning in a tsv file)")


def _named(
    rows: Iterator[tuple[int, list[str]]],
    path: Path,
    columns: Sequence[str],
    optional: Sequence[str],
    separator: str,
) -> Iterator[tuple[str, Row]]:
    _, header = next(rows, (1, []))
    require_columns(f"{path}:1", columns, header)
    require_once(f"{path}:1", [name for name in header if name in (*columns, *optional)])
    for number, values in rows:
        if len(values) != len(header):
            raise DataError(
                f"{path}:{number}: {len(values)} values found, but line 1 names {len(header)} columns; "
                f"separate values by {separator}"
            )
        yield f"{path}:{number}", dict(zip(header, values, strict=True))


def _tab_values(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The line number and values of each non-empty line; notes values that seem to be quoted."""
    is_noted = False
    for number, line in enumerate(lines_of(path), start=1):
        if values := line.removesuffix("\n"):
            yield number, values.split("\t")
            if not is_noted and any(map(_seems_quoted, values.split("\t"))):
                is_noted = True
                note(
                    f'{path}:{number}: a value in quotes, with quotes doubled (""), is read as it stands: '
                    "quotes have no meaning in a tsv file; if they should, make it a csv file"
                )


def _seems_quoted(value: str) -> bool:
    return len(value) > 2 and value[0] == value[-1] == '"' and _DOUBLED.search(value[1:-1]) is not None


def _comma_values(path: Path) -> Iterator[tuple[int, list[str]]]:
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
