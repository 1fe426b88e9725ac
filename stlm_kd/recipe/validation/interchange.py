"""What interventions demand of the rest of a recipe, as far as it shows without loading a model."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.errors import ModelError
from stlm_kd.models.layer_alignment import Choice, aligned
from stlm_kd.recipe.schema.interchange import SOURCE_OPTIONS, Interchange, sources
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, known_names
from stlm_kd.recipe.validation.features import given_layers, layers_beyond
from stlm_kd.teachers import COMBINED

LAYER_OPTIONS = ["alignment", "layer_schedule", "exclude_last", "source_site", "exact_dropout"]
"""Fields without a meaning where no state is exchanged."""


def interchange_conflicts(place: Place, objective: Interchange, recipe: Recipe) -> Iterator[Conflict]:
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
    if objective.source != "input-tokens":
        yield from _layers_left(place, objective, asked, recipe)


def _source_options(place: Place, objective: Interchange) -> Iterator[Conflict]:
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


def _by_teacher(place: Place, objective: Interchange, asked: list[str]) -> Iterator[Conflict]:
    assert isinstance(objective.alignment, dict)
    given = list(objective.alignment)
    if missing := [name for name in asked if name not in given]:
        yield ((*place, "alignment"),), f"none given for teacher {missing[0]}"
    if unknown := [name for name in given if name not in asked]:
        known = known_names(unknown[0], asked)
        yield ((*place, "alignment"), ("teachers",)), f"{unknown[0]} is not a teacher of this loss{known}"


def _alignment(place: Place, objective: Interchange, asked: list[str], recipe: Recipe) -> Iterator[Conflict]:
    layers = objective.alignment if isinstance(objective.alignment, dict) else {}
    yield from layers_beyond((*place, "alignment"), [layers], asked, recipe)


def _layers_left(
    place: Place, objective: Interchange, asked: list[str], recipe: Recipe
) -> Iterator[Conflict]:
    """Alignments that the models cannot have, or of which ``exclude_last`` leaves nothing.

    Where the recipe does not say how many layers a teacher has, it has as many as the student.
    """
    own = given_layers(recipe)
    made = {teacher.name: teacher.recipe for teacher in recipe.teachers}
    for name in asked:
        if objective.is_by_teacher and name not in objective.alignment:
            continue
        chosen, inner = objective.alignment_of(name), made[name]
        theirs = None if inner is None else given_layers(inner)
        try:
            layers = _aligned_layers(chosen, own, theirs or own)
        except ModelError as error:
            yield ((*place, "alignment"), ("student",), ("teachers",)), str(error)
            return
        last = "last" if own is None else own - 1
        if objective.exclude_last and layers <= {last}:
            message = "true, but the student's last layer is the only one that is aligned; align another"
            yield ((*place, "exclude_last"), (*place, "alignment"), ("student",)), message
            return


def _aligned_layers(chosen: Choice, own: int | None, theirs: int | None) -> set[int | str]:
    """The student's layers that are aligned; names where it takes a model to know them."""
    if not isinstance(chosen, str):
        return {*chosen}
    return {chosen} if own is None or theirs is None else {*aligned(chosen, own, theirs)}
