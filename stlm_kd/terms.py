"""The terms of an objective: which loss, of what, against whom, and how much it weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stlm_kd.alignment import Site
from stlm_kd.schedules import Number, Ramp, Steps, at

COMBINED = "combined"
"""The name of the teachers' mixture among the teachers."""

Option = float | int | bool | str | Mapping[str, float] | Mapping[str, Mapping[str, float]]


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


@dataclass(frozen=True, slots=True)
class Term:
    """One weighted loss of the objective.

    Attributes:
        name: As it appears in metrics; unique.
        loss: Name in ``LOSSES``, ``STATE_LOSSES`` or ``MAP_LOSSES``.
        weight: Factor in the total.
        on: The positions that count: those with a label, or all that are not padding.
        teacher: Whose distribution, states or maps are the target: a teacher's name, ``COMBINED`` for
            distributions, or None for the labels.
        options: Keyword arguments of the loss.
        pairs: Of a loss on states or maps: sites of the student and of the teacher that are compared.
        intervention: What is compared is what both sides say after it; None: without any. Terms of one
            intervention share its passes.
    """

    name: str
    loss: str
    weight: Number = 1.0
    on: Literal["labels", "attended"] = "labels"
    teacher: str | None = None
    options: Mapping[str, Option | Ramp | Steps] = field(default_factory=dict)
    pairs: tuple[tuple[Site, Site], ...] = ()
    intervention: Intervention | None = None

    def at(self, progress: float) -> Term:
        """The term when a share of the training, 0 to 1, is done: with plain numbers only."""
        options = {
            name: at(value, progress) if isinstance(value, (Ramp, Steps)) else value
            for name, value in self.options.items()
        }
        return replace(self, weight=at(self.weight, progress), options=options)

    @property
    def factor(self) -> float:
        """The weight of a term that has plain numbers only."""
        assert isinstance(self.weight, (int, float)), "a schedule that was not asked for its value"
        return float(self.weight)

    @property
    def temperature(self) -> float:
        """What the target distribution is softened by before teachers are combined."""
        value = self.options.get("temperature", 1.0)
        assert isinstance(value, (int, float)), "a schedule that was not asked for its value"
        return float(value)


@dataclass(frozen=True, slots=True)
class Combination:
    """How several teachers become one target.

    Attributes:
        how: A name in ``COMBINERS``.
        options: Its keyword arguments.
        teacher_dropout: With which probability each teacher is left out of an optimizer step, never all.
        seed: Of what is drawn.
    """

    how: str = "mean"
    options: Mapping[str, Option] = field(default_factory=dict)
    teacher_dropout: float = 0.0
    seed: int = 0
