"""Sweeps: one run per combination of values of recipe keys, and one table of students."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from stlm_kd.comparison.compare import Comparison, compare_with
from stlm_kd.comparison.entries import read_rows
from stlm_kd.errors import UsageError
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.overrides import refuse_repeated, split


def sweep_recipes(recipe: str, overrides: Sequence[str], sweeps: Sequence[str]) -> dict[str, Recipe]:
    """The recipe with each combination of the values, by run name; the last key varies fastest.

    >>> keys = ["student.init_from.layers=[[0, 2], [0, 2, 4]]", "seeds=[[1], [2]]"]
    >>> list(sweep_recipes("diito-3-layer", [], keys))
    ['diito-3-layer-0-2-1', 'diito-3-layer-0-2-2', 'diito-3-layer-0-2-4-1', 'diito-3-layer-0-2-4-2']

    Args:
        recipe: A file or a built-in name.
        overrides: Changes ``key.path=value`` common to all runs.
        sweeps: ``key.path=[value, value, …]``, one per key; without any, there is one recipe, of its own
            name.

    Raises:
        UsageError: A sweep is malformed, a key is given twice, or the recipe has no eval.
        RecipeError: The recipe is invalid with one of the combinations.
    """
    refuse_repeated([*overrides, *sweeps])
    if not sweeps:
        return {Path(recipe).stem: load(recipe, overrides)}
    found: dict[str, Recipe] = {}
    for values in itertools.product(*map(_overrides, sweeps)):
        loaded = load(recipe, [*overrides, *values])
        if not loaded.eval:
            raise UsageError(f"--sweep: {recipe} has no eval, so there are no scores to put side by side")
        name = "-".join([Path(recipe).stem, *map(_value_name, values)])
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found[next(free for free in itertools.chain([name], numbered) if free not in found)] = loaded
    return found


def _overrides(sweep: str) -> list[str]:
    """One override per value of ``key.path=[value, value, …]``."""
    values, key = split(sweep)[1].plain(), sweep.partition("=")[0]
    written = [json.dumps(value) for value in values] if isinstance(values, list) else []
    if not 2 <= len(written) == len(set(written)):
        raise UsageError(
            f"--sweep {sweep}: expected a list of different values, for instance train.steps=[100, 200]"
        )
    return [f"{key}={value}" for value in written]


def _value_name(override: str) -> str:
    """The value of an override for use in a run's name; negative numbers keep their sign."""
    return "-".join(re.findall(r"(?:(?<!\w)-(?=[\d.]))?[A-Za-z0-9.]+", override.partition("=")[2]))


def compare_students(runs: Sequence[str | PathLike[str]]) -> Comparison:
    """Compare each run's student with that of the first run.

    Args:
        runs: Runs of a sweep, or their folders.

    Raises:
        CheckpointError: A run has no scores.
        DataError: The students were scored on different examples.
    """
    students = [row for row in read_rows([fspath(run) for run in runs]) if row.kind == "student"]
    return compare_with(students[0], students)
