"""Head and tail of a distribution: its likely outcomes exactly, and draws from the others.

The draws come from numbers that are a function of seed, item, position and number of the draw, so that a
cache has the same content whoever writes it, in whatever order.

Shapes: n tokens, V outcomes, H of the head, M draws.
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
    """Numbers from 0 up to but not 1, (n, M): a hash of seed, item, position and draw.

    The mixing is SplitMix64's (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014),
    fed with one number after the other.
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
    """What a cache keeps of some tokens: ``ids``, ``log_probs``, ``tail``, ``entropy``, ``label_log_probs``.

    The m-th draw takes its number from the m-th of M equal shares of the tail: as often as plain draws on
    average, and never with more variance (stratified sampling).

    Args:
        logits_nV: The teacher's; -inf where it rules an outcome out.
        label_n: Right outcomes, or a negative number where there is none, of which 0 is kept.
        uniforms_nM: One number for each draw.
        head: H, at most V.
        temperature: Softens the distribution.
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
    """Outcomes by their share of the tail, (n, M); anything where the tail is empty.

    Args:
        rest_nV: Logarithms of the probabilities that are left.
        tail_n1: Logarithm of their sum.
        uniforms_nM: One number for each draw.
    """
    draws = uniforms_nM.shape[-1]
    # In float64, or the sum over a large vocabulary favours some outcomes; of shares, which cannot vanish.
    shares_nV = (rest_nV - tail_n1).nan_to_num_(nan=-torch.inf, neginf=-torch.inf).exp().double()
    upto_nV = shares_nV.cumsum(-1)
    strata_nM = (uniforms_nM + torch.arange(draws, device=uniforms_nM.device)) / max(draws, 1)
    found_nM = torch.searchsorted(upto_nV, strata_nM.double() * upto_nV[:, -1:], right=True)
    return found_nM.clamp_(max=rest_nV.shape[-1] - 1)
