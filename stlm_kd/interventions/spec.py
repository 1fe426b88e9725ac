"""The specification of an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stlm_kd.registry import Option


@dataclass(frozen=True, slots=True)
class Intervention:
    """An interchange of hidden states, applied to student and teachers alike.

    ``name`` is unique among the objectives, and part of the seed of all draws. ``layers``: by teacher, the
    student's candidate layers with the aligned teacher layers; ``random`` draws one in each optimizer step,
    ``top-down`` and ``bottom-up`` give each an equal share of the steps, from the last or the first on.
    ``fraction`` of the shorter of base and source is exchanged, at least one position and at most
    ``max_tokens`` of each document. ``source`` is a name in ``SOURCES``; its output of a block replaces that
    block's, or its input. ``exact_dropout``: the student's three passes draw dropout independently, at full
    cost.
    """

    name: str
    layers: Mapping[str, Mapping[int, tuple[int, ...]]]
    layer_schedule: Literal["random", "top-down", "bottom-up"] = "random"
    positions: Literal["consecutive", "random", "masked"] = "consecutive"
    fraction: float = 0.3
    max_tokens: int | None = None
    source: str = "other-example"
    options: Mapping[str, Option] = field(default_factory=dict)
    source_site: Literal["block-output", "block-input"] = "block-output"
    exact_dropout: bool = False

    @property
    def student_layers(self) -> list[int]:
        """The student's layers aligned with every teacher, ascending."""
        return sorted(set[int].intersection(*(set(layers) for layers in self.layers.values())))
