"""Losses after an intervention: the terms that each of the recipe's intervention losses expands to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from stlm_kd.distillation.terms import Term
from stlm_kd.registry import Registry
from stlm_kd.schedules import Number

InterchangeLoss = Callable[[Term, str, Number], list[Term]]
"""``loss(template, cosine_teacher, cosine_weight)`` → terms that share the template's intervention."""

INTERCHANGE_LOSSES: Registry[InterchangeLoss] = Registry("loss after an intervention")


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
