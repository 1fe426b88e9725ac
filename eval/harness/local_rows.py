"""Rows of local files and of the sample generator, in the format that lm-eval's prompts expect.

lm-eval calls these functions by the names in the files of ``eval/tasks``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.tasks.hellaswag.utils import preprocess, process_docs

from stlm_kd.artifacts.atomic import parse_json
from stlm_kd.data.sources.files import lines_of
from stlm_kd.data.synthetic import minimal_pairs
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.sharing.data_sets.named import DATA

LAYOUT = 1
"""Part of each score's cache key: increment it if the same file yields different rows."""

Row = dict[str, Any]  # one line of a benchmark's file; columns depend on the benchmark

# The unfinished end of a text, after its last complete sentence.
_FRAGMENT = re.compile(r'(?<=[.!?]) +(?=[^.!?]+$)|(?<=[.!?]["\']) +(?=[^.!?]+$)')


def from_files(
    *, splits: Mapping[str, str], column: str | None = None, value: str | None = None, **_metadata: object
) -> dict[str, Dataset]:
    """The rows of each split's JSON Lines file (optionally gzipped), or those with a value in a column.

    Raises MissingResourceError for a missing file, and DataError if it has no such rows, or is not JSON.
    """
    chosen = {}
    for split, file in splits.items():
        path = Path(file)
        by_task = _rows_by_task(path, column, _time_of_change(path))
        rows = by_task.get("" if column is None else str(value))
        if not rows:
            raise DataError(f"{file}: no rows" + (f" whose {column} is {value}" if column else ""))
        chosen[split] = Dataset.from_list(rows)
    return chosen


def from_sample(*, phenomenon: str, pairs: int, seed: int, **_metadata: object) -> dict[str, Dataset]:
    """Synthetic minimal pairs of one phenomenon, in BLiMP's format."""
    made = minimal_pairs(pairs, seed=seed, phenomena=(phenomenon,))
    rows = [{"sentence_good": pair.good, "sentence_bad": pair.bad, "UID": pair.phenomenon} for pair in made]
    return {"train": Dataset.from_list(rows)}


def hellaswag(dataset: Dataset) -> Dataset:
    """Rows with ``query``, ``choices`` and ``label``, from text whose WikiHow markup is already removed.

    lm-eval's prompt capitalises the unfinished sentence. The Hub has it in a separate column; here it is the
    text after the last complete sentence. One difference remains: where markup preceded an ending, lm-eval's
    choice begins with a second space.
    """
    if "ctx_a" in dataset.column_names:
        built: Dataset = process_docs(dataset)
        return built
    return Dataset.from_list([_hellaswag_row(row) for row in dataset])


def _hellaswag_row(row: Row) -> Row:
    return {
        **row,
        "query": preprocess(f"{row['activity_label']}: {_with_capital(row['ctx'])}"),
        "choices": row["endings"],
        "gold": int(row["label"]),
        "label": str(row["label"]),
    }


def _with_capital(context: str) -> str:
    """The text with its last, unfinished sentence capitalised by ``str.capitalize``.

    >>> _with_capital("A man sits. he")
    'A man sits. He'
    """
    place = _FRAGMENT.search(context)
    if place is None:
        return context
    return context[: place.end()] + context[place.end() :].capitalize()


def _time_of_change(path: Path) -> int:
    """Modification time in nanoseconds, so that a changed file is read again."""
    if not path.is_file():
        raise MissingResourceError(f"{path}: no such file; {DATA} must name the folder that holds lm_eval/")
    return path.stat().st_mtime_ns


@lru_cache(maxsize=8)
def _rows_by_task(path: Path, column: str | None, changed: int) -> dict[str, list[Row]]:
    """The rows by the value of a column; without one, all rows under the empty string."""
    del changed
    groups: dict[str, list[Row]] = {}
    for number, line in enumerate(lines_of(path), start=1):
        try:
            row: Row = parse_json(line, nan=True)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not a line of JSON ({error})") from error
        groups.setdefault("" if column is None else str(row[column]), []).append(row)
    return groups
