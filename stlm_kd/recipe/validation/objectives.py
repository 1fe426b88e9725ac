"""Conflicts of objectives with the rest of a recipe, as far as possible without loading a model."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.recipe.schema.interchange import Interchange
from stlm_kd.recipe.schema.objective import LABELS, Feature, MapFeature, Objective, Response, Schedule
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, not_a_teacher
from stlm_kd.recipe.validation.features import feature_conflicts, layers_beyond
from stlm_kd.recipe.validation.interchange import interchange_conflicts
from stlm_kd.teachers import COMBINED


def objective_conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of the objectives with the teachers, the student and the task."""
    if not recipe.objectives and not recipe.adapts_only:
        yield (("objectives",),), f"none given; expected at least one, such as {{loss: {LABELS}}}"
    if recipe.objectives and not any(_has_weight(objective) for objective in recipe.objectives):
        yield (("objectives",),), "every weight is 0; expected at least one above 0"
    for i, objective in enumerate(recipe.objectives):
        yield from _objective(("objectives", i), objective, recipe)
        yield from _for_task(("objectives", i), objective, recipe)
        yield from _combined_teachers(("objectives", i), objective, recipe)


def _has_weight(objective: Objective) -> bool:
    weights = (objective.weight, getattr(objective, "causal_cosine_weight", 0.0))
    return any(any(weight.values) if isinstance(weight, Schedule) else bool(weight) for weight in weights)


def _objective(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Conflict]:
    teachers = [teacher.name for teacher in recipe.teachers]
    if objective.loss == LABELS:
        if isinstance(objective, Response) and objective.on != "labels":
            message = f"{objective.on} given, but {LABELS} counts labelled positions; expected labels"
            yield ((*place, "on"),), message
        if objective.teacher != COMBINED:
            yield ((*place, "teacher"),), f"{objective.teacher} given, but {LABELS} has no teacher"
        return
    if not teachers:
        message = f"{objective.loss} compares the student with a teacher, and the recipe has none"
        yield ((*place, "loss"), ("teachers",)), message
    elif objective.teacher not in (COMBINED, *teachers):
        message = not_a_teacher(objective.teacher, [COMBINED, *teachers])
        yield ((*place, "teacher"), ("teachers",)), message
    elif isinstance(objective, (Feature, MapFeature)):
        yield from _feature(place, objective, recipe)
    elif isinstance(objective, Interchange):
        yield from interchange_conflicts(place, objective, recipe)


def _feature(place: Place, objective: Feature | MapFeature, recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of a loss on inner states, as far as the recipe determines the models' layers."""
    teachers = {teacher.name: teacher for teacher in recipe.teachers}
    if objective.teacher == COMBINED and len(teachers) > 1:
        message = (
            f"not given, but hidden states and maps cannot be combined; name one of {', '.join(teachers)}"
        )
        yield ((*place, "teacher"), ("teachers",)), message
        return
    name = objective.teacher if objective.teacher != COMBINED else next(iter(teachers))
    beyond = list(layers_beyond((*place, "sites"), objective.sites, [name], recipe))
    yield from beyond or feature_conflicts(place, objective, recipe, name, teachers[name].recipe)


def _combined_teachers(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of an objective on several combined teachers."""
    if len(recipe.teachers) < 2 or objective.teacher != COMBINED or objective.loss == LABELS:
        return
    names = ", ".join(teacher.name for teacher in recipe.teachers)
    if recipe.task == "regression":
        message = f"not given, but there is no distribution over numbers to combine; name one of {names}"
        yield ((*place, "teacher"), ("teachers",)), message
    elif objective.loss == "logit_mse" and not objective.options["centred"]:
        message = (
            "false, but teachers are combined by probabilities, which define logits up to a constant; "
            f"use centred: true, or name one of {names} as teacher"
        )
        yield ((*place, "centred"), ("teachers",)), message


def _for_task(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Conflict]:
    task: Place = ("task",)
    if recipe.language_task is not None:
        return
    if isinstance(objective, Response):
        if objective.on != "labels":
            message = f"{objective.on} given, but {recipe.task} counts labelled examples; expected labels"
            yield ((*place, "on"), task), message
    elif isinstance(objective, (Feature, MapFeature, Interchange)) and objective.on == "labels":
        message = f"labels given, but positions have no label in {recipe.task}; expected attended"
        yield ((*place, "on"), task), message
    if recipe.task != "regression":
        return
    if isinstance(objective, Interchange):
        yield ((*place, "loss"), task), f"{objective.loss} compares distributions, and a regression has none"
    elif isinstance(objective, Response) and objective.loss != LABELS:
        if objective.loss != "logit_mse":
            message = f"{objective.loss} compares distributions, and a regression has none; use logit_mse"
            yield ((*place, "loss"), task), message
        elif objective.options["centred"]:
            message = "true, but a regression has one output, which centring makes 0; use centred: false"
            yield ((*place, "centred"), task), message
