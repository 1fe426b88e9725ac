"""Cross-tokenizer distillation: agreement of two models on the likelihood of text spans.

Shapes: S spans, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from stlm_kd.losses.chunked import chunk_rows
from stlm_kd.losses.precision import at_least_float32, compute_dtype


def span_agreement(student_S: Tensor, teacher_S: Tensor, /, *, temperature: float = 100.0) -> Tensor:
    """Binary KL(teacher || student) of each span against all others, times the temperature, in nats: (S,).

    Arguments are log-probabilities of the spans, (S,); equal ones give 0. Span probabilities are raised to
    the power of 1 / temperature, since those of long spans are too small to learn from. Minixhofer, Vulić and
    Ponti, "Universal Cross-Tokenizer Distillation via Approximate Likelihood Matching", 2025, section 3, with
    temperature 100. For growing temperature, the value tends to t log(t / s) - t + s for the surprisals t and
    s in nats.
    """
    # below 0, so that the complement has a finite logarithm
    softened_S, target_S = (values.clamp(max=-1e-6) / temperature for values in (student_S, teacher_S))
    other_S, other_target_S = (torch.log(-torch.expm1(values)) for values in (softened_S, target_S))
    follows_S = target_S.exp() * (target_S - softened_S)
    return temperature * (follows_S - torch.expm1(target_S) * (other_target_S - other_S))


def log_likelihoods(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_N: Tensor) -> Tensor:
    """Differentiable log-probability of each label, (N,), with one chunk's logits in memory at a time."""
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
    """The sum over the tokens of each span, (count,); tokens with a negative span index are ignored."""
    inside_N = span_N >= 0
    return values_N.new_zeros(count).index_add(0, span_N[inside_N], values_N[inside_N])
