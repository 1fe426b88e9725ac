"""Conflicts of translated teachers with the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.recipe.schema.cache import objectives_of_teacher
from stlm_kd.recipe.schema.objective import Response
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place


def translation_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of teachers that keep their vocabulary: they give distributions over tokens alone."""
    for i, teacher in enumerate(recipe.teachers):
        if not teacher.translate:
            continue
        place: Place = ("teachers", i, "translate")
        if recipe.task != "clm":
            yield (place, ("task",)), f"only for causal language models, but the task is {recipe.task}"
        if teacher.adapt is not None:
            message = "given with adapt, which replaces the teacher's vocabulary; leave one of them out"
            yield (place, ("teachers", i, "adapt")), message
        if teacher.is_only_read:
            message = "the cache has the student's tokens already; leave translate out"
            yield (place, ("teachers", i, "cache")), message
        init_from = recipe.student.init_from
        if init_from is not None and init_from.teacher == teacher.name:
            message = f"{teacher.name} keeps its own vocabulary (translate), which is not the student's"
            yield (("student", "init_from", "teacher"), place), message
        for j, objective in objectives_of_teacher(recipe, teacher.name).items():
            if not isinstance(objective, Response):
                message = (
                    f"{objective.loss} compares more than distributions, but {teacher.name} keeps its own "
                    "vocabulary (translate), and has no states at the student's tokens; use adapt"
                )
                yield (("objectives", j, "loss"), place), message
