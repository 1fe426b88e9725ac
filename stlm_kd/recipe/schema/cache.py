"""The part of a recipe that says that a teacher is read from disk, and what objectives ask of such a one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ValidationInfo, model_validator

from stlm_kd.recipe.schema.fields import Count, Part, Positive, Text, fault, show
from stlm_kd.recipe.schema.objective import LABELS, Objective, Response
from stlm_kd.teachers import COMBINED

if TYPE_CHECKING:
    from stlm_kd.recipe.schema.root import Recipe

PRESETS = {"default": (16, 8), "small": (8, 8), "large": (32, 16)}
"""Likeliest outcomes kept of each token, and draws from the others."""

VARIANTS = 4
"""Masks of each row where a recipe does not say how many."""


def _site(value: object) -> object:
    if value in ("embeddings", "last") or (type(value) is int and value >= 0):
        return value
    raise fault(f"{show(value)} found; expected embeddings, last, or a layer of the teacher such as 3")


Kept = Annotated[int | str, BeforeValidator(_site)]


class Cache(Part):
    """What the teacher says of the training data is written once, and read from disk from then on.

    ``path``: a cache that is there, in whose place nothing else is given; else it is made where there is
    none. ``top``: likeliest outcomes of each token, kept exactly; ``draws``: of the others; both from
    ``preset`` where not given: 16 + 8, small: 8 + 8, large: 32 + 16. ``temperature``: as the objectives'
    where null. ``variants``: masks of each row of a masked language model; 4 where null. ``states``: hidden
    states that are kept for losses on them: ``embeddings``, ``last``, layers.
    """

    called: ClassVar[str] = "a key of cache"
    path: Text | None = None
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
        top, draws = PRESETS.get(str(given.get("preset", "default")), PRESETS["default"])
        return {
            "top": top,
            "draws": draws,
            **{key: value for key, value in given.items() if value is not None},
        }


def _words(value: object, info: ValidationInfo) -> Any:
    """``auto`` or a folder, in place of a mapping."""
    if value is None or isinstance(value, Cache):
        return value
    if isinstance(value, str) and value:
        return Cache.model_validate({} if value == "auto" else {"path": value})
    if isinstance(value, Mapping):
        return Cache.model_validate(value, context=info.context)
    raise fault(f"{show(value)} found; expected auto, a folder, or a mapping such as {{preset: small}}")


AnyCache = Annotated[Cache | None, BeforeValidator(_words)]


def responses_of(recipe: Recipe, teacher: str) -> list[Response]:
    """The objectives on what the teacher says, alone or with others."""
    return [entry for entry in asking(recipe, teacher).values() if isinstance(entry, Response)]


def asking(recipe: Recipe, teacher: str) -> dict[int, Objective]:
    """The objectives that ask the teacher anything, by their place."""
    return {
        i: entry
        for i, entry in enumerate(recipe.objectives)
        if entry.loss != LABELS and entry.teacher in (COMBINED, teacher)
    }


def temperature_of(recipe: Recipe, teacher: str, cache: Cache) -> float:
    """The temperature of a teacher's cache: the objectives', which all have the same."""
    if cache.temperature is not None:
        return cache.temperature
    given = [entry.options.get("temperature", 1.0) for entry in responses_of(recipe, teacher)]
    return float(given[0]) if given else 1.0


def positions_of(recipe: Recipe, teacher: str) -> Literal["labels", "attended"]:
    """The tokens that objectives count of what the teacher says: those with a label, or all."""
    alone = all(getattr(entry, "on", "labels") == "labels" for entry in asking(recipe, teacher).values())
    return "labels" if alone else "attended"
