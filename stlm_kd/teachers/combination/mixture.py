"""The mixture of several teachers at each token.

Shapes: N tokens, n of these, M teachers, V outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stlm_kd.data.batch import IGNORED
from stlm_kd.registry import Option
from stlm_kd.teachers.combination.features import (
    OF_DISTRIBUTIONS,
    Need,
    TeacherDistributions,
    WeightingFeatures,
)
from stlm_kd.teachers.combination.weighting import COMBINERS


@dataclass(frozen=True, slots=True)
class TeacherMixture:
    """How the teachers of N tokens become one, and what is known of the tokens before a teacher speaks.

    Attributes:
        combination: The way.
        teachers: Of whom the mixture is made, in this order.
        progress: The share of the training that is done.
        domains: Names of domains.
        domain: As in ``WeightingFeatures``, (N,).
        drawn: As in ``WeightingFeatures``, (N,).
        gate: As in ``WeightingFeatures``, (N, M), with the gradient that trains the gate.
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
        """What the way looks at."""
        return COMBINERS.needs(self.combination.how, self.combination.options)

    @property
    def weighs_distributions(self) -> bool:
        """Whether weights depend on what the teachers say of a token."""
        return len(self.teachers) > 1 and bool(self.needs & OF_DISTRIBUTIONS)

    def rows(self, chosen: Tensor | slice) -> TeacherMixture:
        """Of some tokens."""
        parts = {name: getattr(self, name) for name in ("domain", "drawn", "gate")}
        return replace(self, **{name: part[chosen] for name, part in parts.items() if part is not None})

    def weights(self, said: TeacherDistributions, label_n: Tensor, *, like: Tensor) -> Tensor:
        """The teachers' weights at all its tokens, (n, M).

        Args:
            said: What their distributions tell of themselves, as far as ``needs`` names it.
            label_n: The labels.
            like: Has the place and the type of log-probabilities.
        """
        evidence = WeightingFeatures(
            teachers=self.teachers,
            blank=like.new_zeros(len(label_n), len(self.teachers)),
            progress=self.progress,
            labelled=label_n != IGNORED,
            confidence=said.confidence,
            entropy=said.entropy,
            label_log_prob=said.label_log_prob,
            domain=self.domain,
            domains=self.domains,
            drawn=self.drawn,
            gate=None if self.gate is None else self.gate.detach(),
        )
        return COMBINERS[self.combination.how](evidence, **self.combination.options)


def mixture(log_probs_nV: Mapping[str, Tensor], weights_nM: Tensor) -> Tensor:
    """Logarithms of Σ w p, (n, V), without leaving log space.

    Args:
        log_probs_nV: Of M teachers.
        weights_nM: In the same order.
    """
    mixed_nV: Tensor | None = None
    for log_nV, log_weight_n in zip(log_probs_nV.values(), weights_nM.log().unbind(-1), strict=True):
        shifted_nV = log_nV + log_weight_n.to(log_nV.dtype)[:, None]
        mixed_nV = shifted_nV if mixed_nV is None else torch.logaddexp(mixed_nV, shifted_nV)
    assert mixed_nV is not None
    return mixed_nV


@dataclass(frozen=True, slots=True)
class Combination:
    """How several teachers become one target.

    Attributes:
        how: A name in ``COMBINERS``.
        options: Its keyword arguments.
        teacher_dropout: With which probability each teacher is left out of an optimizer step, never all.
        seed: Of what is drawn.
    """

    how: str = "mean"
    options: Mapping[str, Option] = field(default_factory=dict)
    teacher_dropout: float = 0.0
    seed: int = 0
