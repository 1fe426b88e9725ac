"""The terms of an objective: which loss, of what, against whom, and how much it weighs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.layer_alignment import Site
from stlm_kd.registry import Option
from stlm_kd.schedules import Number, Ramp, Steps, at


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
