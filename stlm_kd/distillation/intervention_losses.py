"""What is compared after an intervention, for each loss of recipes that has one."""

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
    """KL(teacher || student) of the outcomes, and the cosine distance of the last hidden states.

    From distillation with interchange interventions (Wu et al., "Causal Distillation for Language Models",
    2022, section 3): both sides have to say the same after the same intervention.

    Args:
        template: With name, weight, teacher, temperature and intervention.
        cosine_teacher: Whose last states are compared.
        cosine_weight: Of the cosine distance; 0: it is left out.
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
