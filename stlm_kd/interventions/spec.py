"""What is exchanged, and how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stlm_kd.registry import Option


@dataclass(frozen=True, slots=True)
class Intervention:
    """Hidden states that are exchanged in the student and in its teachers alike, and how they are drawn.

    Attributes:
        name: Of the objective, by which everything random is named; unique.
        layers: By teacher, the student's layers that may be drawn and the teacher's that each stands for.
        layer_schedule: A layer at random in each optimizer step; or one for an equal share of all steps each,
            from the last layer down or from the first one up.
        positions: A run of neighbours, any, or those that a masked language model has to find again.
        fraction: Of the shorter one of base and source, the share of positions exchanged; at least one.
        max_tokens: Positions exchanged in a document at most.
        source: Name in ``SOURCES``: where the other states come from.
        options: Keyword arguments of the source.
        source_site: What is copied over a block's output: the source's output of that block, or its input.
        exact_dropout: Whether the student's three passes draw dropout each for itself, at the full price.
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
        """The student's layers that are aligned with every teacher, ascending."""
        return sorted(set[int].intersection(*(set(layers) for layers in self.layers.values())))
