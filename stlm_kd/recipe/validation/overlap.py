"""Validation data that are training data too, as far as their names say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, within


def trainings(recipe: Recipe, place: Place = (), teacher: str = "") -> Iterator[tuple[Place, str, Recipe]]:
    """The recipe and all that its teachers are trained by, each with its place and teacher's name or ""."""
    yield place, teacher, recipe
    for i, entry in enumerate(recipe.teachers):
        if entry.recipe is not None:
            yield from trainings(entry.recipe, (*place, "teachers", i, "recipe"), entry.name)


def overlaps(recipe: Recipe) -> Iterator[Conflict]:
    """Validation data on which a student or one of its teachers is trained, unless that is allowed."""
    for place, _, outer in trainings(recipe):
        if not outer.data.allow_overlap:
            yield from within(place, _of_one(outer))


def _of_one(recipe: Recipe) -> Iterator[Conflict]:
    labelled = recipe.language_task is None
    known: dict[str, tuple[Place, str]] = {}
    for place, teacher, trained in trainings(recipe):
        of_teacher = f" of the recipe of teacher {teacher}" if teacher else ""
        for i, source in enumerate(trained.data.train):
            where: Place = (*place, "data", "train", i)
            known.setdefault(_origin(source, labelled), (where, f"data.train[{i}]{of_teacher}"))
    for i, source in enumerate(recipe.data.validation or ()):
        if _origin(source, labelled) not in known:
            continue
        where, told = known[_origin(source, labelled)]
        message = (
            f"{source.value} is {told} too; expected data that are not trained on; "
            "name others, or set data.allow_overlap: true"
        )
        yield (("data", "validation", i, source.kind), where), message


def _origin(source: Source, labelled: bool) -> str:
    """What names the data of a source, however they are read."""
    options = source.options(labelled=labelled)
    given = {name: value for name, value in options.items() if name not in source.entry.reading}
    value = os.path.normpath(Path.cwd() / source.value) if isinstance(source.value, str) else source.value
    return repr((source.kind, value, given))
