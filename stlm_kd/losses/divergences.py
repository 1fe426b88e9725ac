"""Divergences between the teacher's and the student's distribution at each token.

The factor temperature squared keeps the gradient's size independent of the temperature (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015, section 2).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32
from stlm_kd.losses.table import LOSSES, Temperature


@LOSSES.register("forward_kl")
def forward_kl(student_NC: Tensor, teacher_NC: Tensor, /, *, temperature: Temperature = 1.0) -> Tensor:
    """KL(teacher || student) at each token, in nats, times temperature squared.

    It asks the student to cover whatever the teacher holds possible. For the mode-seeking direction see
    ``reverse_kl``.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same outcomes, shape (N, C). -inf marks an outcome that the
            teacher rules out: it gets no probability and the student's mass there is pushed away.
        temperature: Both distributions are softened by it.

    Returns:
        One value per token, shape (N,), not reduced. The objective masks and averages.
    """
    student_log_NC = functional.log_softmax(at_least_float32(student_NC) / temperature, dim=-1)
    teacher_log_NC = functional.log_softmax(at_least_float32(teacher_NC) / temperature, dim=-1)
    ruled_out_NC = teacher_log_NC.isneginf()
    ratio_NC = (teacher_log_NC - student_log_NC).masked_fill(ruled_out_NC, 0.0)
    return temperature**2 * (teacher_log_NC.exp() * ratio_NC).sum(-1)


@LOSSES.register("reverse_kl")
def reverse_kl(student_NC: Tensor, teacher_NC: Tensor, /, *, temperature: Temperature = 1.0) -> Tensor:
    """KL(student || teacher) at each token, in nats, times temperature squared.

    It asks the student to stay within what the teacher holds likely (Gu et al., "MiniLLM", 2024). Where the
    teacher rules an outcome out the divergence would be infinite, so the student's distribution is taken
    given that the outcome is one that the teacher allows; mass outside can be neither gained nor lost by it.

    Args:
        student_NC: Student logits, shape (N, C).
        teacher_NC: Teacher logits over the same outcomes, shape (N, C); -inf marks an outcome ruled out.
        temperature: Both distributions are softened by it.

    Returns:
        One value per token, shape (N,), not reduced. The objective masks and averages.
    """
    teacher_log_NC = functional.log_softmax(at_least_float32(teacher_NC) / temperature, dim=-1)
    ruled_out_NC = teacher_log_NC.isneginf()
    allowed_NC = at_least_float32(student_NC).masked_fill(ruled_out_NC, float("-inf"))
    student_log_NC = functional.log_softmax(allowed_NC / temperature, dim=-1)
    ratio_NC = (student_log_NC - teacher_log_NC).masked_fill(ruled_out_NC, 0.0)
    return temperature**2 * (student_log_NC.exp() * ratio_NC).sum(-1)
