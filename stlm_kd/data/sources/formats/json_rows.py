"""Rows of JSON: one object per line, or an array of objects.

A reader of our own: those of libraries convert texts that look like numbers, drop lone surrogates, and name
no line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from stlm_kd.data.sources.files import lines_of
from stlm_kd.data.sources.tables import Row, require_columns, require_once
from stlm_kd.errors import DataError


def json_lines(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The objects of a file with one per line."""
    for number, line in enumerate(lines_of(path), start=1):
        if line.strip():
            place = f"{path}:{number}"
            found = parsed(line, place, "each line must be one JSON object")
            yield place, _checked(found, place, columns)


def json_array(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a JSON array, which is read into memory; or of JSON lines."""
    text = "".join(lines_of(path, longest=sys.maxsize - 1))
    if not text.lstrip().startswith("["):
        yield from json_lines(path, columns, optional)
        return
    entries = parsed(text, str(path), "expected an array of objects, or one object per line")
    assert isinstance(entries, list)
    for number, entry in enumerate(entries, start=1):
        place = f"{path}: row {number}"
        yield place, _checked(entry, place, columns)


def parsed(text: str, place: str, expected: str) -> object:
    """A JSON value; DataError if it is none, nested too deeply, or has a key twice."""
    try:
        return json.loads(text, object_pairs_hook=partial(_without_repeated_keys, place))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error}); {expected}") from error


def json_object(row: object, place: str, *, column: str = "") -> Mapping[str, object]:
    """The value, if it is an object; ``column`` is one that is looked for."""
    if not isinstance(row, dict):
        field = f" with a {column} field" if column else ""
        raise DataError(f"{place}: {type(row).__name__} found, expected a JSON object{field}")
    return row


def _checked(row: object, place: str, columns: Sequence[str]) -> Row:
    found = json_object(row, place, column=columns[0] if columns else "")
    require_columns(place, columns, found)
    return found


def _without_repeated_keys(place: str, pairs: list[tuple[str, object]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        require_once(place, [key for key, _ in pairs])
    return row
