"""The features from which combiners compute weights. Shapes: n tokens, M teachers, V tokens or classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stlm_kd.data.batch import IGNORED
from stlm_kd.lazy import torch
from stlm_kd.losses import TemperedLogits, TopKTail

if TYPE_CHECKING:
    from torch import Tensor


Need = Literal[
    "confidence", "entropy", "label_log_prob", "progress", "domain", "step_draw", "row_draw", "gate"
]
"""A feature of ``WeightingFeatures``; ``step_draw`` and ``row_draw`` select how ``drawn`` is drawn."""

OF_DISTRIBUTIONS: frozenset[Need] = frozenset({"confidence", "entropy", "label_log_prob"})
OF_TOKENS: frozenset[Need] = OF_DISTRIBUTIONS | {"domain", "row_draw", "gate"}
"""Features that vary between tokens; without these, all tokens of a step have the same weights."""


@dataclass(frozen=True, slots=True)
class WeightingFeatures:
    """Features of n tokens and M teachers; None for a feature that was not requested.

    Attributes:
        teachers: Teacher names, in the order of the columns.
        blank: Zeros, (n, M), with the device and dtype of the weights.
        progress: Training progress, 0 to 1.
        labelled: Whether there is a label, (n,) bool.
        confidence: The largest log-probability, (n, M).
        entropy: Entropy in nats, (n, M).
        label_log_prob: Log-probability of the label, (n, M); arbitrary where there is none.
        domain: Index into ``domains`` of each token's domain, (n,) int64.
        domains: Domain names.
        drawn: Uniform random number in [0, 1): one per step, or one per row, (n,).
        gate: The gate's score of each teacher, (n, M); the softmax gives the weights.
    """

    teachers: tuple[str, ...]
    blank: Tensor
    progress: float = 0.0
    labelled: Tensor | None = None
    confidence: Tensor | None = None
    entropy: Tensor | None = None
    label_log_prob: Tensor | None = None
    domain: Tensor | None = None
    domains: tuple[str, ...] = ()
    drawn: Tensor | None = None
    gate: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TeacherDistributions:
    """The features computed from the teachers' distributions, as in ``WeightingFeatures``."""

    confidence: Tensor | None = None
    entropy: Tensor | None = None
    label_log_prob: Tensor | None = None

    def rows(self, chosen: Tensor | slice) -> TeacherDistributions:
        return TeacherDistributions(*(None if part is None else part[chosen] for part in self._parts()))

    @classmethod
    def concatenate(cls, columns: Sequence[TeacherDistributions]) -> TeacherDistributions:
        parts = zip(*(column._parts() for column in columns), strict=True)
        return cls(*(None if each[0] is None else torch.cat([*each], dim=-1) for each in parts))

    def _parts(self) -> tuple[Tensor | None, ...]:
        return (self.confidence, self.entropy, self.label_log_prob)


@dataclass(frozen=True, slots=True)
class Domains:
    """The domain of each data source; rows are numbered consecutively, source by source.

    A row contains documents of one source only, so all its tokens have the same domain. ``names`` and
    ``rows`` are each source's domain, which sources may share, and number of rows.

    >>> Domains(("news", "prose"), (2, 3)).of(torch.tensor([0, 4, 2, -1])).tolist()
    [0, 1, 1, 0]
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]

    def of(self, example_ids_B: Tensor) -> Tensor:
        """Index into ``names`` of each row's source, (B,) int64; arbitrary for a row of padding."""
        ends = torch.tensor(self.rows, device=example_ids_B.device).cumsum(0)
        return torch.bucketize(example_ids_B, ends, right=True).clamp(max=len(self.names) - 1)


def weighting_features(
    teachers: Sequence[TemperedLogits | TopKTail],
    label_n: Tensor,
    needs: Collection[Need],
    temperature: float,
) -> TeacherDistributions:
    """Compute features of the M teachers' distributions at n tokens, after temperature scaling.

    The scaled distributions are the ones that are mixed, and the only ones known for a sparse target. Labels
    are ``IGNORED`` where there is none.

    Raises ValueError for a sparse target of another temperature, or without label log-probabilities.
    """
    places_n1 = label_n.masked_fill(label_n == IGNORED, 0)[:, None]
    columns: dict[str, list[Tensor]] = {name: [] for name in OF_DISTRIBUTIONS if name in needs}
    with torch.no_grad():
        for teacher in teachers if columns else ():
            if isinstance(teacher, TopKTail):
                teacher.check(temperature)
            for name, found in columns.items():
                if isinstance(teacher, TopKTail):
                    found.append(_OF_SPARSE[name](teacher))
                else:
                    found.append(_OF_DENSE[name](teacher.log_probs(temperature), places_n1))
        return TeacherDistributions(**{name: torch.stack(found, -1) for name, found in columns.items()})


def _labels_of_sparse(teacher: TopKTail) -> Tensor:
    if teacher.label_log_probs is None:
        raise ValueError("a sparse target without label log-probabilities cannot be weighted by them")
    return teacher.label_log_probs


_OF_DENSE = {
    "confidence": lambda log_nV, places_n1: log_nV.amax(-1),
    "entropy": lambda log_nV, places_n1: torch.special.entr(log_nV.exp()).sum(-1),
    "label_log_prob": lambda log_nV, places_n1: log_nV.gather(-1, places_n1).squeeze(-1),
}
_OF_SPARSE = {
    "confidence": lambda teacher: teacher.log_probs.amax(-1),
    "entropy": lambda teacher: teacher.entropy,
    "label_log_prob": _labels_of_sparse,
}
