"""The specification of an intervention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from stlm_kd.registry import Option


@dataclass(frozen=True, slots=True)
class Intervention:
    """An interchange of hidden states, applied to student and teachers alike.

    Attributes:
        name: Unique name of the objective, part of the seed of all its draws.
        layers: By teacher, the student's candidate layers with the aligned teacher layers.
        layer_schedule: ``random`` draws a layer in each optimizer step; ``top-down`` and ``bottom-up`` give
            each layer an equal share of the steps, from the last or from the first layer.
        positions: Contiguous positions, random positions, or the masked positions of a masked language model.
        fraction: Fraction of the shorter of base and source that is exchanged; at least one position.
        max_tokens: Maximum number of positions exchanged per document.
        source: Name in ``SOURCES``.
        options: Keyword arguments of the source.
        source_site: What replaces a block's output: the source's output of that block, or its input.
        exact_dropout: Whether the student's three passes draw dropout independently, at full cost.
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
