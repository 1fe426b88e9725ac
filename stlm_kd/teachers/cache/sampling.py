"""Top-k head and sampled tail of a distribution. Shapes: n tokens, V vocabulary, H in the head, M draws.

The random numbers are functions of seed, item, position and draw, so the content of a cache does not depend
on the process that writes it or on the order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = npt.NDArray[np.uint64]


def uniforms(
    seed: int, items_n: npt.NDArray[np.int64], positions_n: npt.NDArray[np.int64], draws: int
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), (n, M): a hash of seed, item, position and draw.

    Uses the mixing function of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number
    generators", 2014), applied to one number after the other.
    """
    mixed_n = _mix(np.full(len(items_n), seed, np.uint64), items_n.astype(np.uint64))
    mixed_n = _mix(mixed_n, positions_n.astype(np.uint64))
    mixed_nM = _mix(mixed_n[:, None], np.arange(draws, dtype=np.uint64))
    return (mixed_nM >> np.uint64(32)).astype(np.float64) / 2.0**32


def _mix(words: Words, numbers: Words) -> Words:
    with np.errstate(over="ignore"):
        words = words + numbers + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def head_and_tail(
    logits_nV: Tensor, label_n: Tensor, uniforms_nM: Tensor, *, head: int, temperature: float
) -> Mapping[str, Tensor]:
    """Compute a cache's columns: ``ids``, ``log_probs``, ``tail``, ``entropy``, ``label_log_probs``.

    Logits are -inf for a token that the teacher rules out; the H tokens of the ``head`` are at most V. A
    label below 0 is none, and its log-probability stored as 0.

    Stratified sampling: the m-th draw comes from the m-th of M equal parts of the tail. The expectation is
    that of independent draws, and the variance is never larger.
    """
    log_nV = (logits_nV.float() / temperature).log_softmax(-1)
    top = log_nV.topk(head, dim=-1)
    rest_nV = log_nV.scatter(-1, top.indices, -torch.inf)
    tail_n1 = rest_nV.logsumexp(-1, keepdim=True)
    drawn_nM = drawn(rest_nV, tail_n1, uniforms_nM)
    nothing_left_n1 = tail_n1.isneginf()
    drawn_nM = torch.where(nothing_left_n1, top.indices[:, :1], drawn_nM) if head else drawn_nM
    has_label_n = label_n >= 0
    of_label_n = log_nV.gather(-1, label_n.clamp(min=0)[:, None]).squeeze(-1)
    return {
        "ids": torch.cat([top.indices, drawn_nM], dim=-1),
        "log_probs": top.values,
        "tail": tail_n1.squeeze(-1),
        "entropy": torch.special.entr(log_nV.exp()).sum(-1),
        "label_log_probs": torch.where(has_label_n, of_label_n, 0.0),
    }


def drawn(rest_nV: Tensor, tail_n1: Tensor, uniforms_nM: Tensor) -> Tensor:
    """Draw tokens (n, M) by a tail's log-probabilities and the log of their sum; any where it is empty."""
    draws = uniforms_nM.shape[-1]
    # float64, since rounding in sums over a large vocabulary biases draws; normalised to avoid underflow.
    shares_nV = (rest_nV - tail_n1).nan_to_num_(nan=-torch.inf, neginf=-torch.inf).exp().double()
    upto_nV = shares_nV.cumsum(-1)
    strata_nM = (uniforms_nM + torch.arange(draws, device=uniforms_nM.device)) / max(draws, 1)
    found_nM = torch.searchsorted(upto_nV, strata_nM.double() * upto_nV[:, -1:], right=True)
    return found_nM.clamp_(max=rest_nV.shape[-1] - 1)
