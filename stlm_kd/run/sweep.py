"""One recipe with several values in one place: a run for each, and their students in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from stlm_kd.errors import UsageError
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.overrides import split
from stlm_kd.run.compare import Comparison, compare_with
from stlm_kd.run.contenders import read_contenders


def swept(recipe: str, changes: Sequence[str], sweep: str) -> dict[str, Recipe]:
    """The recipe with each of the values, in their order, by the names of their runs.

    >>> list(swept("diito-3-layer", [], "student.init_from.layers=[[0, 2], [0, 2, 4]]"))
    ['diito-3-layer-0-2', 'diito-3-layer-0-2-4']

    Args:
        recipe: A file or a built-in name.
        changes: Overrides that all have in common.
        sweep: ``key.path=[value, value, …]``.

    Raises:
        UsageError: It is not of this form, or the recipe has nothing to put side by side.
        RecipeError: With one of the values the recipe has faults.
    """
    values, key = split(sweep)[1].plain(), sweep.partition("=")[0]
    written = [json.dumps(value) for value in values] if isinstance(values, list) else []
    if not 2 <= len(written) == len(set(written)):
        raise UsageError(
            f"--sweep {sweep}: expected a list of different values, for instance train.steps=[100, 200]"
        )
    found: dict[str, Recipe] = {}
    for value in written:
        loaded = load(recipe, [*changes, f"{key}={value}"])
        if not loaded.eval:
            raise UsageError(f"--sweep: {recipe} has no eval, so there are no scores to put side by side")
        short = re.sub(r"[^A-Za-z0-9.]+", "-", value).strip("-")
        name = f"{Path(recipe).stem}-{short}"
        found[f"{name}-{len(found) + 1}" if name in found else name] = loaded
    return found


def side_by_side(folders: Sequence[Path]) -> Comparison:
    """The students of runs, each against that of the first; other rows are in the runs' own tables.

    Raises:
        CheckpointError: A run has no scores.
        DataError: They were scored on other examples.
    """
    students = [one for one in read_contenders([*map(str, folders)]) if one.kind == "student"]
    return compare_with(students[0], students)
