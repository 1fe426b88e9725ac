"""Conflicts of teacher caches with the rest of a recipe."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.recipe.schema.cache import VARIANTS, Cache, objectives_of_teacher, responses_of
from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import Feature, MapFeature, Objective, Schedule
from stlm_kd.recipe.schema.root import Recipe, Teacher
from stlm_kd.recipe.validation.conflict import Conflict, Place


def cache_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of caches with objectives, task and teachers."""
    for i, teacher in enumerate(recipe.teachers):
        if teacher.cache is None:
            continue
        place: Place = ("teachers", i, "cache")
        if recipe.adapts_only:
            yield (place,), "given, but no student is trained, so it would not be used; leave it out"
        if teacher.cache.path is not None:
            yield from _existing_cache(i, teacher, teacher.cache, recipe)
        elif recipe.language_task is None:
            for name in _set_keys(teacher.cache):
                message = f"given, but a {recipe.task} cache stores all logits; use cache: auto"
                yield ((*place, name), ("task",)), message
        elif recipe.task != "mlm" and teacher.cache.variants is not None:
            yield ((*place, "variants"), ("task",)), "only for masked language models (task: mlm)"
        for j, objective in objectives_of_teacher(recipe, teacher.name).items():
            yield from _objective(("objectives", j), objective, teacher)
        if recipe.language_task is not None:
            yield from _temperatures(place, teacher, recipe)
    yield from _variants(recipe)


def _existing_cache(i: int, teacher: Teacher, cache: Cache, recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of a teacher that exists only as a cache."""
    place: Place = ("teachers", i, "cache")
    for name in _set_keys(cache):
        message = "given, but path is an existing cache with its own settings; leave it out"
        yield ((*place, name), (*place, "path")), message
    for name in ("adapt", "recipe"):
        if getattr(teacher, name) is not None:
            message = "given, but the teacher is read from an existing cache; leave one of them out"
            yield (("teachers", i, name), place), message
    init_from = recipe.student.init_from
    if init_from is not None and init_from.teacher == teacher.name:
        message = f"{teacher.name} is read from a cache, which has no weights; use cache: auto"
        yield (("student", "init_from", "teacher"), place), message


def _set_keys(cache: Cache) -> list[str]:
    """The keys with other values than the defaults, besides ``path``."""
    default = Cache.model_validate({"path": cache.path})
    return [name for name, value in cache if value != getattr(default, name)]


def _objective(place: Place, objective: Objective, teacher: Teacher) -> Iterator[Conflict]:
    assert teacher.cache is not None
    if isinstance(objective, Interchange):
        message = (
            f"runs its teachers after interventions, but {teacher.name} is read from a cache; "
            "leave out its cache, or this objective"
        )
    elif isinstance(objective, MapFeature):
        message = (
            f"compares attention maps, which the cache of {teacher.name} does not store; "
            "leave out the cache, or this objective"
        )
    elif isinstance(objective, Feature) and teacher.cache.path is None and not teacher.cache.states:
        message = (
            f"compares hidden states, but the cache of {teacher.name} stores none; "
            "list those it compares, such as cache: {states: [last]}, or leave out the cache"
        )
    elif isinstance(objective, Feature) and teacher.cache.path is not None and teacher.model is None:
        message = f"needs the configuration of {teacher.name}; give its model too"
    else:
        return
    yield ((*place, "loss"), ("teachers",)), f"{objective.loss} {message}"


def _temperatures(place: Place, teacher: Teacher, recipe: Recipe) -> Iterator[Conflict]:
    """A cache has one temperature: samples at one are not samples at another."""
    assert teacher.cache is not None
    given = [entry.options.get("temperature", 1.0) for entry in responses_of(recipe, teacher.name)]
    if any(isinstance(temperature, Schedule) for temperature in given):
        message = "given, but a cache has one temperature, and an objective has a schedule of temperatures"
        yield (place, ("objectives",)), message
        return
    found = sorted({float(temperature) for temperature in given})
    words = " and ".join(f"{temperature:g}" for temperature in found)
    if len(found) > 1:
        message = f"given, but a cache has one temperature, and objectives on {teacher.name} have {words}"
        yield (place, ("objectives",)), message
    elif teacher.cache.temperature is not None and found and found != [teacher.cache.temperature]:
        message = f"{teacher.cache.temperature:g} given, but the objectives on {teacher.name} have {words}"
        yield ((*place, "temperature"), ("objectives",)), message


def _variants(recipe: Recipe) -> Iterator[Conflict]:
    if recipe.task != "mlm":
        return
    first: tuple[int, int] | None = None
    for i, teacher in enumerate(recipe.teachers):
        if teacher.cache is None or teacher.cache.path is not None:
            continue
        variants = teacher.cache.variants or VARIANTS
        first = first or (i, variants)
        if variants != first[1]:
            message = f"{variants} given, but teachers[{first[0]}] has {first[1]}; all need the same masks"
            yield (("teachers", i, "cache", "variants"), ("teachers", first[0], "cache")), message
