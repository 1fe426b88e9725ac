"""Refuse teachers whose weights do not fit into the memory: as a run begins, and in its plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from transformers import PretrainedConfig

from stlm_kd.errors import RecipeError, error_context
from stlm_kd.models.load import load_config
from stlm_kd.pipeline.checks.room import Room, room_faults
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stages.teacher import finished_teacher
from stlm_kd.pipeline.stages.teacher_cache import cache_jobs
from stlm_kd.pipeline.stages.tokenizer import made_setup, sized_setup
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.root import Teacher


def check_room(setup: RecipeSetup, origin: str, is_finished: Callable[[], bool], room: Room) -> None:
    """RecipeError for live teachers without room, unless ``is_finished``: nothing is left to train."""
    live = [teacher for teacher in setup.recipe.teachers if not is_cached(teacher, setup)]
    if (faults := [*room_faults(setup, _configs(live, setup.context), room)]) and not is_finished():
        raise RecipeError(origin, faults)


def check_planned_room(
    recipe: Recipe,
    context: RunContext,
    origin: str,
    is_finished: Callable[[RecipeSetup | None], bool],
    room: Room,
) -> None:
    """As ``check_room`` of a run of the recipe and of its teachers' recipes, but makes no stage.

    Reads configurations and tokenizers, and what stages hold only if a teacher lacks room. ``is_finished``
    gets None if a tokenizer, on which all else depends, is yet to be made.
    """
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            inner = f"{origin}, recipe of teacher {teacher.name}"
            check_planned_room(teacher.recipe, context, inner, partial(_is_made, teacher, recipe), room)
    read = [one for one in recipe.teachers if one.model is not None and not one.is_only_read]
    if not read:
        return
    sized = sized_setup(recipe, context)
    with error_context(origin):
        if not any(room_faults(sized, _configs(read, context), room)):
            return
        setup = made_setup(recipe, context)
        check_room(setup or sized, origin, lambda: is_finished(setup), room)


def is_cached(teacher: Teacher, setup: RecipeSetup) -> bool:
    """Whether all outputs of the teacher are cached, so that it need not be loaded."""
    if teacher.cache is None or teacher.model is None:
        return False
    if teacher.is_only_read:
        return True
    model = finished_teacher(setup, teacher)
    return model is not None and all(job.exists for job in cache_jobs(setup, teacher, model))


def is_prepared(teacher: Teacher, setup: RecipeSetup) -> bool:
    """Whether a teacher is trained and adapted."""
    return finished_teacher(setup, teacher) is not None


def _is_made(teacher: Teacher, outer: Recipe, inner: RecipeSetup | None) -> bool:
    """Whether the teacher that an inner recipe trains is prepared for the outer one."""
    setup = None if inner is None else made_setup(outer, inner.context)
    return setup is not None and is_prepared(teacher, setup)


def _configs(teachers: Iterable[Teacher], context: RunContext) -> dict[str, PretrainedConfig]:
    trust = context.trust_remote_code
    return {
        teacher.name: load_config(teacher.model, trust_remote_code=trust)
        for teacher in teachers
        if teacher.model is not None
    }
