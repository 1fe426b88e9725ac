"""The mixture of M teachers at N tokens, n of these, over V tokens or classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stlm_kd.data.batch import IGNORED
from stlm_kd.lazy import torch
from stlm_kd.registry import Option
from stlm_kd.teachers.combination.features import (
    OF_DISTRIBUTIONS,
    Need,
    TeacherDistributions,
    WeightingFeatures,
)
from stlm_kd.teachers.combination.weighting import COMBINERS

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class TeacherMixture:
    """The combination of teachers at N tokens, with the features that do not depend on their outputs.

    ``domains``, ``domain``, ``drawn`` and ``gate`` are as in ``WeightingFeatures``; the gate's scores have
    the gradient that trains it. ``progress`` is that of the training, 0 to 1.
    """

    combination: Combination
    teachers: tuple[str, ...]
    progress: float = 0.0
    domains: tuple[str, ...] = ()
    domain: Tensor | None = None
    drawn: Tensor | None = None
    gate: Tensor | None = None

    @property
    def needs(self) -> frozenset[Need]:
        return COMBINERS[self.combination.how].needs_with(self.combination.options)

    @property
    def weighs_distributions(self) -> bool:
        """Whether weights depend on the teachers' distributions."""
        return len(self.teachers) > 1 and bool(self.needs & OF_DISTRIBUTIONS)

    def rows(self, chosen: Tensor | slice) -> TeacherMixture:
        """Select tokens by mask, indices or slice."""
        parts = {name: getattr(self, name) for name in ("domain", "drawn", "gate")}
        return replace(self, **{name: part[chosen] for name, part in parts.items() if part is not None})

    def weights(self, features: TeacherDistributions, label_n: Tensor, *, like: Tensor) -> Tensor:
        """The teachers' weights (n, M), as ``like`` in dtype and device, from the features in ``needs``."""
        evidence = WeightingFeatures(
            teachers=self.teachers,
            blank=like.new_zeros(len(label_n), len(self.teachers)),
            progress=self.progress,
            labelled=label_n != IGNORED,
            confidence=features.confidence,
            entropy=features.entropy,
            label_log_prob=features.label_log_prob,
            domain=self.domain,
            domains=self.domains,
            drawn=self.drawn,
            gate=None if self.gate is None else self.gate.detach(),
        )
        weights: Tensor = COMBINERS[self.combination.how](evidence, **self.combination.options)
        return weights


def mixture(log_probs_nV: Mapping[str, Tensor], weights_nM: Tensor) -> Tensor:
    """Log of the mixture Σ w p, (n, V), computed in log space; weights are in the teachers' order."""
    mixed_nV: Tensor | None = None
    for log_nV, log_weight_n in zip(log_probs_nV.values(), weights_nM.log().unbind(-1), strict=True):
        shifted_nV = log_nV + log_weight_n.to(log_nV.dtype)[:, None]
        mixed_nV = shifted_nV if mixed_nV is None else torch.logaddexp(mixed_nV, shifted_nV)
    assert mixed_nV is not None
    return mixed_nV


@dataclass(frozen=True, slots=True)
class Combination:
    """How several teachers are combined: a combiner, its options, and the draws' seed.

    ``teacher_dropout`` is the probability of dropping each in an optimizer step; at least one remains.
    """

    how: str = "mean"
    options: Mapping[str, Option] = field(default_factory=dict)
    teacher_dropout: float = 0.0
    seed: int = 0
