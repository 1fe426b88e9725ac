"""Rows of tables with their places, and the texts of one of their columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.data.sources import formats
from stlm_kd.data.sources.files import format_of
from stlm_kd.data.sources.filters import Selection
from stlm_kd.errors import DataError, one_line

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, object]
"""One row of a table: the value of each column."""


def read_rows(
    path: Path, *, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Stream the rows of one table with their locations, for messages.

    ``columns`` are required in every row, ``optional`` ones are read if present, and others are allowed.
    Raises DataError, which names the line, for malformed or truncated content, not UTF-8, or a missing or
    duplicate column; MissingResourceError if the file cannot be opened.
    """
    module, _, function = format_of(path).reader.partition(".")
    if not module:
        raise DataError(f"{path}: plain text has no columns; expected a table")
    found: Iterator[tuple[str, Row]] = getattr(import_module(f"{formats.__name__}.{module}"), function)(
        path, columns, optional
    )
    return found


def require_once(place: str, names: Sequence[str]) -> None:
    """Refuse columns of which two have the same name (DataError)."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise DataError(
                f"{place}: column {one_line(name)} is named twice; expected different names; "
                "rename or remove one of the two"
            )


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
            cure = f"name one of them, or add or rename {column} here if other rows or files have it"
            raise DataError(f"{place}: no column {column}; found: {listed}; {cure}")


def column_texts(
    rows: Iterable[tuple[str, Row]], column: str, selection: Selection | None = None
) -> Iterator[str]:
    """The texts of one column of the selected rows, without blank ones; errors as ``text_value``."""
    for place, row in rows:
        if selection is None or not selection.takes(row):
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
