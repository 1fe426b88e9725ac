"""Losses between attention maps of the student and the teacher, at each query.

A new one is one function decorated with ``MAP_LOSSES.register``; its keyword-only arguments become its
options in recipes. Maps come as log-probabilities over the keys, -inf where a query may not look.

Shapes: N queries, K keys.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.registry import Registry

MapLoss = Callable[..., Tensor]
"""``loss(student_NK, teacher_NK, /, **options)`` → one value per query (N,), not reduced."""

MAP_LOSSES: Registry[MapLoss] = Registry("loss of attention maps")


@MAP_LOSSES.register("attention_cross_entropy")
def attention_cross_entropy(student_NK: Tensor, teacher_NK: Tensor, /) -> Tensor:
    """The cross-entropy of the student's attention under the teacher's, in nats: -Σ p_teacher log p_student.

    Its least value is the teacher's own entropy. Keys to which the teacher gives nothing count nothing, also
    where the student may not look; it is infinite where the teacher looks and the student may not.
    """
    teacher_NK = at_least_float32(teacher_NK).exp()
    student_NK = at_least_float32(student_NK).masked_fill(teacher_NK == 0, 0.0)
    return -(teacher_NK * student_NK).sum(-1)


@MAP_LOSSES.register("attention_mse")
def attention_mse(student_NK: Tensor, teacher_NK: Tensor, /) -> Tensor:
    """The mean squared difference of the two probabilities over the keys at which either may look.

    After Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, equation 7, which
    compares scores before the softmax and takes the mean over all keys, padding too. Here the length to which
    a row is padded changes nothing.
    """
    student_NK, teacher_NK = at_least_float32(student_NK), at_least_float32(teacher_NK)
    keys_N = (~(student_NK.isneginf() & teacher_NK.isneginf())).sum(-1)
    return (student_NK.exp() - teacher_NK.exp()).square().sum(-1) / keys_N.clamp(min=1)
