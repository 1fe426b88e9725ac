"""Conflicts of losses on hidden states and attention maps with models that the recipe itself defines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from stlm_kd.errors import ModelError
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.layer_alignment import Choice, layer_pairs, site_pairs
from stlm_kd.recipe.schema.objective import Feature, MapFeature
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.validation.conflict import Conflict, Place

LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
WIDTHS = ("hidden_size", "n_embd", "dim")
"""Names of the number of layers and of the hidden size in configurations."""


def config_fields(recipe: Recipe) -> dict[str, object]:
    """The configuration of a student built from fields; empty for any other."""
    from stlm_kd.models.presets import PRESETS

    return {**PRESETS.get(recipe.student.preset or "", recipe.student.architecture or {})}


def given_number(recipe: Recipe, names: tuple[str, ...]) -> int | None:
    """A configuration value of a student built from fields; None if only a model has it."""
    given = [value for name, value in config_fields(recipe).items() if name in names]
    return given[0] if given and type(given[0]) is int else None


def given_layers(recipe: Recipe) -> int | None:
    """Number of layers of a student built from fields or selected layers; None as ``given_number``."""
    init_from = recipe.student.init_from
    if init_from is not None and isinstance(init_from.layers, tuple):
        return len(init_from.layers)
    return given_number(recipe, LAYERS)


def site_choices(objective: Feature | MapFeature) -> tuple[Choice, ...]:
    """The objective's sites for ``stlm_kd.models.layer_alignment``, with layers as numbers."""
    return tuple(
        {int(key): layers for key, layers in site.items()} if isinstance(site, dict) else site
        for site in objective.sites
    )


def layers_beyond(
    place: Place, chosen: Iterable[object], names: list[str], recipe: Recipe
) -> Iterator[Conflict]:
    """Layers that a model does not have, if the recipe determines its number of layers."""
    teachers = {teacher.name: teacher.recipe for teacher in recipe.teachers if teacher.name in names}
    maps = [site for site in chosen if isinstance(site, dict)]
    teacher_layers = [n for site in maps for given in site.values() for n in _numbers(given)]
    models: list[tuple[str, Recipe | None, list[int]]] = [
        ("the student", recipe, [int(layer) for site in maps for layer in site]),
        *((f"teacher {name}", inner, teacher_layers) for name, inner in teachers.items()),
    ]
    for who, made, named in models:
        layers = None if made is None else given_layers(made)
        if layers is not None and (beyond := [layer for layer in named if layer >= layers]):
            message = f"layer {beyond[0]} given, but {who} has {layers}; use layers 0 to {layers - 1}"
            yield (place, ("student",), ("teachers",)), message


def _numbers(given: int | tuple[int, ...]) -> tuple[int, ...]:
    return given if isinstance(given, tuple) else (given,)


def feature_conflicts(
    place: Place, objective: Feature | MapFeature, recipe: Recipe, teacher: str, inner: Recipe | None
) -> Iterator[Conflict]:
    """Unsupported families, sites that a model does not have, and different widths without a projection.

    ``inner`` is the teacher's recipe; None if the teacher is a model.
    """
    where: tuple[Place, ...] = (("student",), ("teachers",))
    models = (("the student", recipe), (f"teacher {teacher}", inner))
    families = [(who, config_fields(made).get("model_type")) for who, made in models if made is not None]
    if unsupported := unsupported_families(objective.loss, families):
        yield ((*place, "loss"), *where), unsupported
    if inner is None:
        return
    own, other = given_layers(recipe), given_layers(inner)
    if own is not None and other is not None:
        choose = layer_pairs if isinstance(objective, MapFeature) else site_pairs
        try:
            choose(site_choices(objective), own, other)
        except ModelError as error:
            yield ((*place, "sites"), *where), str(error)
    if isinstance(objective, Feature) and objective.projection == "none":
        own, other = given_number(recipe, WIDTHS), given_number(inner, WIDTHS)
        if None not in (own, other) and own != other:
            yield ((*place, "projection"), *where), widths_differ(teacher, own, other)


def unsupported_families(loss: str, models: Iterable[tuple[str, object]]) -> str | None:
    """The message for models of which no hidden states are known; None if all families, where known, are.

    ``models``: for each model what it is ("the student") and its ``model_type``; None if unknown.
    """
    unknown = [f"{who} is a {family}" for who, family in models if family not in (None, *ARCHITECTURES)]
    if not unknown:
        return None
    known = ", ".join(ARCHITECTURES)
    return f"{loss} does not support these models: {' and '.join(unknown)}; supported: {known}"


def widths_differ(teacher: str, own: object, other: object) -> str:
    """The message for hidden states of different sizes without a projection."""
    found = f"the student's hidden size is {own} and that of teacher {teacher} {other}"
    return f"none, but {found}; use auto or linear"
