"""One recipe with several values of one key or several: a run for each combination, one table of students."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from stlm_kd.comparison.compare import Comparison, compare_with
from stlm_kd.comparison.entries import read_entries
from stlm_kd.errors import UsageError
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.overrides import split


def swept(recipe: str, changes: Sequence[str], sweeps: Sequence[str]) -> dict[str, Recipe]:
    """The recipe with each combination of the values, the last key's changing fastest, by the runs' names.

    >>> list(swept("diito-3-layer", [], ["student.init_from.layers=[[0, 2], [0, 2, 4]]", "seeds=[[1], [2]]"]))
    ['diito-3-layer-0-2-1', 'diito-3-layer-0-2-2', 'diito-3-layer-0-2-4-1', 'diito-3-layer-0-2-4-2']

    Args:
        recipe: A file or a built-in name.
        changes: Overrides that all have in common.
        sweeps: ``key.path=[value, value, …]``, each of another key.

    Raises:
        UsageError: One is not of this form, a key is given twice, or the recipe has no scores to compare.
        RecipeError: With one of the combinations the recipe has faults.
    """
    found: dict[str, Recipe] = {}
    for values in itertools.product(*map(_overrides, sweeps)):
        loaded = load(recipe, [*changes, *values])
        if not loaded.eval:
            raise UsageError(f"--sweep: {recipe} has no eval, so there are no scores to put side by side")
        name = "-".join([Path(recipe).stem, *map(_value_name, values)])
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found[next(free for free in itertools.chain([name], numbered) if free not in found)] = loaded
    return found


def _overrides(sweep: str) -> list[str]:
    """An override for each value of ``key.path=[value, value, …]``."""
    values, key = split(sweep)[1].plain(), sweep.partition("=")[0]
    written = [json.dumps(value) for value in values] if isinstance(values, list) else []
    if not 2 <= len(written) == len(set(written)):
        raise UsageError(
            f"--sweep {sweep}: expected a list of different values, for instance train.steps=[100, 200]"
        )
    return [f"{key}={value}" for value in written]


def _value_name(override: str) -> str:
    """The value of an override as part of a run's name; negative numbers keep their sign."""
    return "-".join(re.findall(r"(?:(?<!\w)-(?=[\d.]))?[A-Za-z0-9.]+", override.partition("=")[2]))


def side_by_side(folders: Sequence[Path]) -> Comparison:
    """The students of runs, each against that of the first; other rows are in the runs' own tables.

    Raises:
        CheckpointError: A run has no scores.
        DataError: They were scored on other examples.
    """
    students = [one for one in read_entries([*map(str, folders)]) if one.kind == "student"]
    return compare_with(students[0], students)
