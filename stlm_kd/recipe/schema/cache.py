"""The cache part of a teacher in a recipe, and the objectives that read a teacher's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ValidationInfo, model_validator

from stlm_kd.recipe.schema.fields import Count, Part, PathText, Positive, fault, show
from stlm_kd.recipe.schema.objective import LABELS, Objective, Response
from stlm_kd.teachers import COMBINED

if TYPE_CHECKING:
    from stlm_kd.recipe.schema.root import Recipe

PRESETS = {"default": (16, 8), "small": (8, 8), "large": (32, 16)}
"""Per position: top tokens stored exactly, and samples from the others."""

VARIANTS = 4
"""Default number of masks of each row."""


def _site(value: object) -> object:
    if value in ("embeddings", "last") or (type(value) is int and value >= 0):
        return value
    raise fault(f"{show(value)} found; expected embeddings, last, or a layer of the teacher such as 3")


Kept = Annotated[int | str, BeforeValidator(_site)]


class Cache(Part):
    """The teacher's outputs for the training data are written once and then read from disk.

    ``path``: an existing cache, which excludes all other keys; by default the cache is built if missing.
    ``top``: number of top tokens per position, stored exactly; ``draws``: samples from the others; both by
    default from ``preset``: 16 + 8, small: 8 + 8, large: 32 + 16. ``temperature`` null: the objectives'.
    ``variants``: masks of each row for a masked language model; default 4. ``states``: hidden states stored
    for hidden-state losses: ``embeddings``, ``last``, layers.
    """

    called: ClassVar[str] = "a key of cache"
    path: PathText | None = None
    preset: Literal["default", "small", "large"] = "default"
    top: Count
    draws: Count
    temperature: Positive | None = None
    variants: Count | None = None
    states: tuple[Kept, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_the_preset(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        top, draws = PRESETS.get(str(given.get("preset")), PRESETS["default"])
        set_keys = {key: value for key, value in given.items() if value is not None}
        return {"top": top, "draws": draws, **set_keys}


def _words(value: object, info: ValidationInfo) -> Any:
    """Convert ``auto`` or a folder to a cache."""
    if value is None or isinstance(value, Cache):
        return value
    if isinstance(value, str) and value:
        return Cache.model_validate({} if value == "auto" else {"path": value})
    if isinstance(value, Mapping):
        return Cache.model_validate(value, context=info.context)
    raise fault(f"{show(value)} found; expected auto, a folder, or a mapping such as {{preset: small}}")


AnyCache = Annotated[Cache | None, BeforeValidator(_words)]


def responses_of(recipe: Recipe, teacher: str) -> list[Response]:
    """The logit objectives that use the teacher, alone or combined."""
    return [entry for entry in objectives_of_teacher(recipe, teacher).values() if isinstance(entry, Response)]


def objectives_of_teacher(recipe: Recipe, teacher: str) -> dict[int, Objective]:
    """The objectives that use the teacher, by index."""
    return {
        i: entry
        for i, entry in enumerate(recipe.objectives)
        if entry.loss != LABELS and entry.teacher in (COMBINED, teacher)
    }


def temperature_of(recipe: Recipe, teacher: str, cache: Cache) -> float:
    """The temperature of a teacher's cache; by default that of the objectives, which all have the same."""
    if cache.temperature is not None:
        return cache.temperature
    given = [entry.options.get("temperature", 1.0) for entry in responses_of(recipe, teacher)]
    return float(given[0]) if given else 1.0


def positions_of(recipe: Recipe, teacher: str) -> Literal["labels", "attended"]:
    """The positions at which objectives use the teacher: labelled ones, or all non-padding ones."""
    used = objectives_of_teacher(recipe, teacher).values()
    return "labels" if all(getattr(entry, "on", "labels") == "labels" for entry in used) else "attended"
