"""Several teachers' distributions at each token become one, in probability space."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from stlm_kd.registry import Registry

Combiner = Callable[..., Tensor]
"""``combiner(log_probs_nV by teacher, label_n, /, **options)`` → log-probabilities of the mixture, (n, V).

It sees one chunk of rows over the full vocabulary; each teacher is already softened by the temperature.
"""

COMBINERS: Registry[Combiner] = Registry("way to combine teachers")


@COMBINERS.register("mean")
def mean(log_probs_nV: Mapping[str, Tensor], label_n: Tensor, /) -> Tensor:
    """The arithmetic mean of the teachers' probabilities."""
    return _mixture(log_probs_nV, dict.fromkeys(log_probs_nV, 1.0))


@COMBINERS.register("weighted")
def weighted(
    log_probs_nV: Mapping[str, Tensor], label_n: Tensor, /, *, weights: Mapping[str, Annotated[float, Ge(0)]]
) -> Tensor:
    """The mean of the teachers' probabilities with a fixed weight for each teacher.

    Args:
        log_probs_nV: Log-probabilities of each teacher.
        label_n: Unused here.
        weights: One weight for each teacher by name, not all 0; only their ratios count.
    """
    return _mixture(log_probs_nV, weights)


def _mixture(log_probs_nV: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Log of Σ wₜ pₜ with the weights scaled to one, without leaving log space."""
    total = sum(weights[name] for name in log_probs_nV)
    mixed_nV: Tensor | None = None
    for name, log_nV in log_probs_nV.items():
        if weights[name] == 0:
            continue
        shifted_nV = log_nV + math.log(weights[name] / total)
        mixed_nV = shifted_nV if mixed_nV is None else torch.logaddexp(mixed_nV, shifted_nV)
    assert mixed_nV is not None, "weights are checked when the recipe is read"
    return mixed_nV
