"""Conflicts of interventions with the rest of a recipe, as far as possible without loading a model."""

from __future__ import annotations

from collections.abc import Iterator

from stlm_kd.errors import ModelError
from stlm_kd.models.layer_alignment import Choice, aligned
from stlm_kd.recipe.schema.interchange import Interchange, sources
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place, known_names
from stlm_kd.recipe.validation.features import given_layers, layers_beyond
from stlm_kd.teachers import COMBINED

LAYER_OPTIONS = ["alignment", "layer_schedule", "exclude_last", "source_site", "exact_dropout"]
"""Fields without effect if no hidden state is exchanged."""


def interchange_conflicts(place: Place, objective: Interchange, recipe: Recipe) -> Iterator[Conflict]:
    """Conflicts of an objective with interventions on the student and one or all teachers."""
    names = [t.name for t in recipe.teachers if objective.teacher in (COMBINED, t.name)]
    if objective.positions == "masked" and recipe.task != "mlm":
        message = f"masked given, but task {recipe.task} masks no tokens; use consecutive or random"
        yield ((*place, "positions"), ("task",)), message
    if len(names) > 1 and objective.causal_cosine_weight:
        message = f"not given, but hidden states cannot be combined; name one of {', '.join(names)}"
        yield ((*place, "teacher"), (*place, "causal_cosine_weight")), message
    yield from _source_options(place, objective)
    if objective.is_by_teacher:
        yield from _by_teacher(place, objective, names)
    else:
        yield from layers_beyond((*place, "alignment"), [objective.alignment], names, recipe)
    if objective.source_entry.replaces == "states":
        yield from _aligned_layers_exist(place, objective, names, recipe)


def _source_options(place: Place, objective: Interchange) -> Iterator[Conflict]:
    """Options that the selected source does not use."""
    source = objective.source_entry
    known = [source.keys.get(option, option) for option in sources().options(source.name)]
    keys = dict.fromkeys(key for name in sources() for key in sources()[name].keys.values())
    for key in keys:
        if getattr(objective, key) is not None and key not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            yield ((*place, key),), f"not an option of the source {source.name}, which {takes}"
    unread = [] if source.runs_source else ["source_site"]
    if source.replaces == "tokens":
        unread = LAYER_OPTIONS
    for name in unread:
        if getattr(objective, name) != type(objective).model_fields[name].default:
            yield ((*place, name),), f"given, but the source {source.name} does not use it; leave it out"


def _by_teacher(place: Place, objective: Interchange, names: list[str]) -> Iterator[Conflict]:
    assert isinstance(objective.alignment, dict)
    given = list(objective.alignment)
    if missing := [name for name in names if name not in given]:
        yield ((*place, "alignment"),), f"none given for teacher {missing[0]}"
    if unknown := [name for name in given if name not in names]:
        known = known_names(unknown[0], names)
        yield ((*place, "alignment"), ("teachers",)), f"{unknown[0]} is not a teacher of this loss{known}"


def _aligned_layers_exist(
    place: Place, objective: Interchange, names: list[str], recipe: Recipe
) -> Iterator[Conflict]:
    """Alignments that the models do not allow, or that ``exclude_last`` makes empty.

    If the recipe does not determine a teacher's number of layers, the student's is used.
    """
    own = given_layers(recipe)
    made = {teacher.name: teacher.recipe for teacher in recipe.teachers}
    for name in names:
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
    """The student's aligned layers; a name if only a model determines them."""
    if not isinstance(chosen, str):
        return {*chosen}
    return {chosen} if own is None or theirs is None else {*aligned(chosen, own, theirs)}
