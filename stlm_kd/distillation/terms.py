"""The terms of an objective, and the terms that a loss after an intervention consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from stlm_kd.interventions.spec import Intervention
from stlm_kd.losses import LOSSES
from stlm_kd.models.layer_alignment import Site
from stlm_kd.registry import Option, Registry
from stlm_kd.schedules import Number, Ramp, Steps, at


@dataclass(frozen=True, slots=True)
class Term:
    """One weighted loss of the objective.

    Attributes:
        name: Unique name, as it appears in metrics.
        loss: Name in ``LOSSES``, ``STATE_LOSSES`` or ``MAP_LOSSES``.
        weight: Factor in the total.
        on: Positions that enter the loss: those with a label, or all non-padding positions.
        teacher: Source of the target distribution, hidden states or attention maps: a teacher's name,
            ``COMBINED`` for distributions, or None for the labels.
        options: Keyword arguments of the loss.
        pairs: For a loss on hidden states or attention maps, the compared layers of student and teacher.
        intervention: Intervention after which the outputs are compared; None for none. Terms with the same
            intervention share its forward passes.
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
        """The term at a training progress of 0 to 1, with schedules resolved to numbers."""
        options = {
            name: at(value, progress) if isinstance(value, (Ramp, Steps)) else value
            for name, value in self.options.items()
        }
        return replace(self, weight=at(self.weight, progress), options=options)

    @property
    def factor(self) -> float:
        """The weight of a term whose schedules are resolved."""
        assert isinstance(self.weight, (int, float)), "unresolved schedule"
        return float(self.weight)

    @property
    def temperature(self) -> float:
        """Temperature of the target distribution, applied before teachers are combined."""
        value = self.options.get("temperature", 1.0)
        assert isinstance(value, (int, float)), "unresolved schedule"
        return float(value)


InterchangeLoss = Callable[[Term, str, Number], list[Term]]
"""``loss(template, cosine_teacher, cosine_weight)`` → terms that share the template's intervention."""

INTERCHANGE_LOSSES: Registry[InterchangeLoss] = Registry("loss after an intervention", 3, shares=LOSSES)


@INTERCHANGE_LOSSES.register("diito")
def diito(template: Term, cosine_teacher: str, cosine_weight: Number, /) -> list[Term]:
    """KL(teacher || student) of the output distributions, and cosine distance of the last hidden states.

    From distillation with interchange interventions (Wu et al., "Causal Distillation for Language Models",
    2022, section 3): student and teacher should agree after the same intervention.

    Args:
        template: Term with name, weight, teacher, temperature and intervention.
        cosine_teacher: Teacher whose last hidden states are compared.
        cosine_weight: Weight of the cosine distance; 0 omits it.
    """
    kl = replace(template, loss="forward_kl")
    if cosine_weight == 0:
        return [kl]
    cosine = replace(
        template,
        name=f"{template.name}.causal_cosine",
        loss="cosine",
        weight=cosine_weight,
        teacher=cosine_teacher,
        options={},
        pairs=(("last", "last"),),
    )
    return [kl, cosine]
