"""Sweeps: one run per combination of values of recipe keys, and one table of students."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from os import PathLike, fspath

from stlm_kd.comparison.compare import Comparison, compare_with
from stlm_kd.comparison.entries import read_rows
from stlm_kd.errors import UsageError, one_line
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.locate import run_name, sweep_list
from stlm_kd.recipe.overrides import refuse_repeated, split
from stlm_kd.recipe.sweep import Variant

MAX_RUNS = 1000
LONGEST_NAME = 120
"""Maximum length of a run's name, which files and folders have with endings."""


def sweep_recipes(recipe: str, overrides: Sequence[str], sweeps: Sequence[str]) -> dict[str, Recipe]:
    """The recipe with each combination of the values, by run name; the last key varies fastest.

    >>> keys = ["student.init_from.layers=[[0, 2], [0, 2, 4]]", "seeds=[[1], [2]]"]
    >>> list(sweep_recipes("diito-3-layer", [], keys))
    ['diito-3-layer-0-2-1', 'diito-3-layer-0-2-2', 'diito-3-layer-0-2-4-1', 'diito-3-layer-0-2-4-2']

    Args:
        recipe: A file or a built-in name.
        overrides: Changes ``key.path=value`` common to all runs.
        sweeps: ``key.path=[value, value, …]``, one per key, or the name of a list under the recipe's
            ``sweep``; without any, there is one recipe, of its own name.

    Raises:
        UsageError: A sweep is malformed, a key is given twice, or the recipe has no eval.
        RecipeError: The recipe is invalid with one of the combinations.
    """
    refuse_repeated([*overrides, *(sweep for sweep in sweeps if "=" in sweep)])
    if not sweeps:
        return {run_name(recipe): load(recipe, overrides)}
    axes = [_axis(sweep) if "=" in sweep else sweep_list(recipe, sweep) for sweep in sweeps]
    if (count := math.prod(map(len, axes))) > MAX_RUNS:
        raise UsageError(
            f"--sweep: {count:,} combinations found; expected at most {MAX_RUNS}; sweep fewer values"
        )
    found: dict[str, Recipe] = {}
    for variants in itertools.product(*axes):
        changes = [override for variant in variants for override in variant.overrides]
        loaded = load(recipe, [*overrides, *changes])
        if not loaded.eval:
            raise UsageError(f"--sweep: {recipe} has no eval, so there are no scores to put side by side")
        name = "-".join([run_name(recipe), *(variant.name for variant in variants)])[:LONGEST_NAME]
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        found[next(free for free in itertools.chain([name], numbered) if free not in found)] = loaded
    return found


def _axis(sweep: str) -> list[Variant]:
    """One variant per value of ``key.path=[value, value, …]``."""
    values, key = split(sweep)[1].plain(), sweep.partition("=")[0]
    written = [json.dumps(value) for value in values] if isinstance(values, list) else []
    if not 2 <= len(written) == len(set(written)):
        raise UsageError(
            f"--sweep {one_line(sweep)}: expected a list of different values, for instance "
            "train.steps=[100, 200]"
        )
    overrides = [f"{key}={value}" for value in written]
    return [Variant(_value_name(override), (override,)) for override in overrides]


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
