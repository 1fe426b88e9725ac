"""What objectives demand of the rest of a recipe, as far as it shows without loading a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stlm_kd.recipe.contradiction import Contradiction, Place, known_names
from stlm_kd.recipe.feature_checks import LAYERS, feature_contradictions, given_number
from stlm_kd.recipe.interchange import SOURCE_OPTIONS, Interchange, sources
from stlm_kd.recipe.objectives import LABELS, Feature, MapFeature, Objective, Response, Schedule
from stlm_kd.recipe.schema import Recipe
from stlm_kd.terms import COMBINED

LAYER_OPTIONS = ["alignment", "layer_schedule", "exclude_last", "source_site", "exact_dropout"]
"""Fields without a meaning where no state is exchanged."""


def objective_contradictions(recipe: Recipe) -> Iterator[Contradiction]:
    """What is wrong with the objectives, given the teachers, the student and the task."""
    if not recipe.objectives and not recipe.adapts_only:
        yield (("objectives",),), f"none given; expected at least one, such as {{loss: {LABELS}}}"
    if recipe.objectives and not any(_weighs(objective) for objective in recipe.objectives):
        yield (("objectives",),), "every weight is 0; expected at least one above 0"
    for i, objective in enumerate(recipe.objectives):
        yield from _objective(("objectives", i), objective, recipe)
        yield from _for_task(("objectives", i), objective, recipe)
        yield from _several(("objectives", i), objective, recipe)


def _weighs(objective: Objective) -> bool:
    weights = [objective.weight]
    if isinstance(objective, Interchange):
        weights.append(objective.causal_cosine_weight)
    return any(any(weight.values) if isinstance(weight, Schedule) else bool(weight) for weight in weights)


def _objective(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Contradiction]:
    teachers = [teacher.name for teacher in recipe.teachers]
    if objective.loss == LABELS:
        if isinstance(objective, Response) and objective.on != "labels":
            yield ((*place, "on"),), f"{objective.on} given, but {LABELS} exists only where there are labels"
        if objective.teacher != COMBINED:
            yield ((*place, "teacher"),), f"{objective.teacher} given, but {LABELS} has no teacher"
        return
    if not teachers:
        message = f"{objective.loss} compares the student with a teacher, and the recipe has none"
        yield ((*place, "loss"), ("teachers",)), message
    elif objective.teacher not in (COMBINED, *teachers):
        known = known_names(objective.teacher, [COMBINED, *teachers])
        yield (
            ((*place, "teacher"), ("teachers",)),
            f"{objective.teacher} is not a teacher of this recipe{known}",
        )
    elif isinstance(objective, (Feature, MapFeature)):
        yield from _feature(place, objective, recipe)
    elif isinstance(objective, Interchange):
        yield from _interchange(place, objective, recipe)


def _interchange(place: Place, objective: Interchange, recipe: Recipe) -> Iterator[Contradiction]:
    """What exchanges states of the student and of one or all teachers."""
    asked = [t.name for t in recipe.teachers if objective.teacher in (COMBINED, t.name)]
    if objective.positions == "masked" and recipe.task != "mlm":
        message = f"masked given, but a {recipe.task} hides no tokens; use consecutive or random"
        yield ((*place, "positions"), ("task",)), message
    if len(asked) > 1 and objective.causal_cosine_weight:
        message = f"not given, but hidden states cannot be combined; name one of {', '.join(asked)}"
        yield ((*place, "teacher"), (*place, "causal_cosine_weight")), message
    yield from _source_options(place, objective)
    if objective.is_by_teacher:
        yield from _by_teacher(place, objective, asked)
    else:
        yield from _alignment(place, objective, asked, recipe)


def _source_options(place: Place, objective: Interchange) -> Iterator[Contradiction]:
    """Options that the chosen source does not read."""
    known = sources().options(objective.source)
    for name in SOURCE_OPTIONS:
        if name in objective.source_options and name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            yield ((*place, name),), f"not an option of the source {objective.source}, which {takes}"
    unread = {"mixup": ["source_site"], "input-tokens": LAYER_OPTIONS}.get(objective.source, [])
    for name in unread:
        if getattr(objective, name) != type(objective).model_fields[name].default:
            yield ((*place, name),), f"given, but the source {objective.source} has no use for it"


def _by_teacher(place: Place, objective: Interchange, asked: list[str]) -> Iterator[Contradiction]:
    assert isinstance(objective.alignment, dict)
    given = list(objective.alignment)
    if missing := [name for name in asked if name not in given]:
        yield ((*place, "alignment"),), f"none given for teacher {missing[0]}"
    if unknown := [name for name in given if name not in asked]:
        known = known_names(unknown[0], asked)
        yield ((*place, "alignment"), ("teachers",)), f"{unknown[0]} is not a teacher of this loss{known}"


def _alignment(
    place: Place, objective: Interchange, asked: list[str], recipe: Recipe
) -> Iterator[Contradiction]:
    layers = objective.alignment if isinstance(objective.alignment, dict) else {}
    yield from _beyond((*place, "alignment"), [layers], asked, recipe)


def _feature(place: Place, objective: Feature | MapFeature, recipe: Recipe) -> Iterator[Contradiction]:
    """What looks into one teacher and the student, as far as their layers are known from the recipe."""
    teachers = {teacher.name: teacher for teacher in recipe.teachers}
    if objective.teacher == COMBINED and len(teachers) > 1:
        message = f"not given, but inner states cannot be combined; name one of {', '.join(teachers)}"
        yield ((*place, "teacher"), ("teachers",)), message
        return
    name = objective.teacher if objective.teacher != COMBINED else next(iter(teachers))
    beyond = list(_beyond((*place, "sites"), objective.sites, [name], recipe))
    yield from beyond or feature_contradictions(place, objective, recipe, name, teachers[name].recipe)


def _beyond(
    place: Place, chosen: Iterable[object], asked: list[str], recipe: Recipe
) -> Iterator[Contradiction]:
    """Layers that a model does not have, where the recipe says how many it has."""
    teachers = {teacher.name: teacher.recipe for teacher in recipe.teachers if teacher.name in asked}
    maps = [site for site in chosen if isinstance(site, dict)]
    teacher_layers = [n for site in maps for given in site.values() for n in _numbers(given)]
    models: list[tuple[str, Recipe | None, list[int]]] = [
        ("the student", recipe, [int(layer) for site in maps for layer in site]),
        *((f"teacher {name}", inner, teacher_layers) for name, inner in teachers.items()),
    ]
    for who, made, named in models:
        layers = None if made is None else given_number(made, LAYERS)
        if layers is not None and (beyond := [layer for layer in named if layer >= layers]):
            message = f"layer {beyond[0]} given, but {who} has {layers}; use layers 0 to {layers - 1}"
            yield (place, ("student",), ("teachers",)), message


def _numbers(given: int | tuple[int, ...]) -> tuple[int, ...]:
    return given if isinstance(given, tuple) else (given,)


def _several(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Contradiction]:
    """What cannot be asked of several teachers together."""
    if len(recipe.teachers) < 2 or objective.teacher != COMBINED or objective.loss == LABELS:
        return
    names = ", ".join(teacher.name for teacher in recipe.teachers)
    if recipe.task == "regression":
        message = f"not given, but there is no distribution over numbers to combine; name one of {names}"
        yield ((*place, "teacher"), ("teachers",)), message
    elif objective.loss == "logit_mse" and not objective.options["centred"]:
        message = (
            "false, but teachers are combined by probabilities, which tell logits up to a constant; "
            f"use centred: true, or name one of {names} as teacher"
        )
        yield ((*place, "centred"), ("teachers",)), message


def _for_task(place: Place, objective: Objective, recipe: Recipe) -> Iterator[Contradiction]:
    task: Place = ("task",)
    if recipe.language_task is not None:
        return
    if isinstance(objective, Response):
        if objective.on != "labels":
            message = f"{objective.on} given, but a {recipe.task} counts examples, each of which has a label"
            yield ((*place, "on"), task), message
    elif isinstance(objective, (Feature, MapFeature, Interchange)) and objective.on == "labels":
        message = f"labels given, but no position of a {recipe.task}'s text has one; expected attended"
        yield ((*place, "on"), task), message
    if recipe.task == "regression" and isinstance(objective, Interchange):
        yield ((*place, "loss"), task), f"{objective.loss} compares distributions, and a regression has none"
    if recipe.task == "regression" and isinstance(objective, Response) and objective.loss != LABELS:
        if objective.loss != "logit_mse":
            message = f"{objective.loss} compares distributions, and a regression has none; use logit_mse"
            yield ((*place, "loss"), task), message
        elif objective.options["centred"]:
            message = "true, but a regression has one output, of which nothing is left; use centred: false"
            yield ((*place, "centred"), task), message
