"""Agreement of two models on how likely spans of a text are, whatever tokens they read it in.

Shapes: S spans, N tokens, D width, V outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stlm_kd.losses.chunked import chunk_rows
from stlm_kd.losses.precision import at_least_float32, compute_dtype


def span_agreement(student_S: Tensor, teacher_S: Tensor, /, *, temperature: float = 100.0) -> Tensor:
    """KL(teacher || student) of "this span follows" or "another one", times the temperature, in nats.

    The probabilities of a span are taken to the power of 1 / temperature: as they are, those of longer spans
    are so small that hardly anything would be learnt from them. Minixhofer, Vulić and Ponti, "Universal
    Cross-Tokenizer Distillation via Approximate Likelihood Matching", 2025, section 3, whose temperature is
    100. As it grows, this tends to t log(t / s) - t + s of the surprisals t and s in nats.

    Args:
        student_S: Log-probability of each span, (S,).
        teacher_S: The same under the teacher.
        temperature: Above 0.

    Returns:
        One value per span, (S,), not reduced; 0 where both are equal.
    """
    softened_S, target_S = (_below_one(values) / temperature for values in (student_S, teacher_S))
    other_S, other_target_S = (torch.log(-torch.expm1(values)) for values in (softened_S, target_S))
    follows_S = target_S.exp() * (target_S - softened_S)
    return temperature * (follows_S - torch.expm1(target_S) * (other_target_S - other_S))


def log_likelihoods(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """Log-probability of each label, (N,), differentiable, with the logits of a chunk alone in memory.

    Args:
        hidden_ND: States that meet the head, (N, D).
        weight_VD: The head's weight.
        bias_V: The head's bias.
        labels_N: Outcomes below V.
    """
    compute = compute_dtype(weight_VD)

    def of_chunk(hidden_nD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_n: Tensor) -> Tensor:
        with torch.autocast(hidden_nD.device.type, enabled=False):
            bias = None if bias_V is None else bias_V.to(compute)
            logits_nV = functional.linear(hidden_nD.to(compute), weight_VD.to(compute), bias)
            return -functional.cross_entropy(at_least_float32(logits_nV), labels_n, reduction="none")

    rows = chunk_rows(weight_VD)
    parts = [
        checkpoint(of_chunk, hidden, weight_VD, bias_V, labels, use_reentrant=False, preserve_rng_state=False)
        for hidden, labels in zip(torch.split(hidden_ND, rows), torch.split(labels_N, rows), strict=True)
    ]
    return torch.cat(parts) if parts else hidden_ND.new_zeros(0, dtype=torch.float32)


def span_sums(values_N: Tensor, span_N: Tensor, count: int) -> Tensor:
    """The sum over the tokens of each span, (count,); those in no span (below 0) are left out."""
    inside_N = span_N >= 0
    return values_N.new_zeros(count).index_add(0, span_N[inside_N], values_N[inside_N])


def _below_one(values_S: Tensor) -> Tensor:
    """Log-probabilities that leave something to other spans, whose logarithm is -inf otherwise."""
    return values_S.clamp(max=-1e-6)
