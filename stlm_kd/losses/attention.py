"""Losses between attention maps of student and teacher, per query. Shapes: N queries, K keys.

Maps are log-probabilities over the keys, -inf at masked keys. For a new loss see ``register_loss``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import MAP_LOSSES

if TYPE_CHECKING:
    from torch import Tensor


@MAP_LOSSES.register("attention_cross_entropy")
def attention_cross_entropy(student_NK: Tensor, teacher_NK: Tensor, /) -> Tensor:
    """Cross-entropy between the teacher's and the student's attention, in nats: -Σ p_teacher log p_student.

    Its minimum is the teacher's entropy. Keys with teacher probability 0 are ignored, even if masked in the
    student. The loss is infinite if the teacher attends to a key that is masked in the student.
    """
    teacher_NK = at_least_float32(teacher_NK).exp()
    student_NK = at_least_float32(student_NK).masked_fill(teacher_NK == 0, 0.0)
    return -(teacher_NK * student_NK).sum(-1)


@MAP_LOSSES.register("attention_mse")
def attention_mse(student_NK: Tensor, teacher_NK: Tensor, /) -> Tensor:
    """Mean squared difference of the attention probabilities over the keys unmasked in either model.

    After Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, equation 7, which
    compares scores before the softmax and averages over all keys, padding included. Here the value does not
    depend on the padded length.
    """
    student_NK, teacher_NK = at_least_float32(student_NK), at_least_float32(teacher_NK)
    keys_N = (~(student_NK.isneginf() & teacher_NK.isneginf())).sum(-1)
    return (student_NK.exp() - teacher_NK.exp()).square().sum(-1) / keys_N.clamp(min=1)
