"""Options of the interventions that compare a student with its teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from stlm_kd.interventions import SOURCES

SUITE = "interchange"
ALL = "all layers"
"""The task of scores over all layers."""


def held_out_sources() -> list[str]:
    """The counterfactual sources that held-out rows and examples can be compared with."""
    return [name for name in SOURCES if SOURCES[name].is_for_held_out]


def _held_out_source(value: object) -> object:
    if value not in held_out_sources():
        known = ", ".join(held_out_sources())
        raise PydanticCustomError("fault", f"{value!r} found; expected one of {known}")
    return value


HeldOutSource: TypeAlias = Annotated[str, BeforeValidator(_held_out_source)]


@dataclass(frozen=True, slots=True)
class PairConfig:
    """The interventions to draw, by the seed, on at most ``rows`` rows of held-out text, or examples."""

    source: str = "other-example"
    positions: Literal["consecutive", "random"] = "consecutive"
    rows: int = 256
    seed: int = 0
