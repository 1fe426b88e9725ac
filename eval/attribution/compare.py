"""Agreement of two models' word attributions: rank correlation and top-word overlap. Shapes: W words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.eval.agreement.report import Agreement, agreement
from stlm_kd.eval.attribution.explain import ClassifierOutputs, Method
from stlm_kd.eval.attribution.words import Weights
from stlm_kd.eval.classification.metrics import spearman
from stlm_kd.lazy import np
from stlm_kd.statistics import paired_bootstrap

if TYPE_CHECKING:
    import numpy.typing as npt


FEWEST_WORDS = 3
"""Minimum words for a rank correlation."""


@dataclass(frozen=True, slots=True)
class MeanOver:
    """A mean over examples with its standard error and 95 % interval (bootstrap)."""

    value: float
    stderr: float
    low: float
    high: float
    examples: int


@dataclass(frozen=True, slots=True)
class Alike:
    """The attributions of two models for one example, compared.

    ``correlation`` is Spearman's of the words' weights: None below ``FEWEST_WORDS`` words, or if a model
    gives all words the same weight. ``overlap`` is the shared fraction of the top words, ``by_chance`` that
    of randomly drawn ones; None if all words would be among them. LIME: ``teacher_again`` and
    ``student_again`` are the correlations of a model's weights with those of another draw.
    """

    id: str
    correlation: float | None
    overlap: float | None
    by_chance: float | None
    teacher_again: float | None
    student_again: float | None


@dataclass(frozen=True, slots=True)
class ExplanationAgreement:
    """Agreement by one method: means over the examples; None with fewer than two usable ones.

    ``overlap`` compares the ``top`` words. The teacher's correlation with itself between draws of LIME is a
    ceiling for any student. ``…_missing``: mean absolute completeness error of integrated gradients, nats.
    """

    method: Method
    top: int
    correlation: MeanOver | None
    overlap: MeanOver | None
    by_chance: float | None
    teacher_again: MeanOver | None
    student_again: MeanOver | None
    teacher_missing: float | None
    student_missing: float | None
    examples: tuple[Alike, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """Agreement of a student with its teacher: predictions, and explanations by method."""

    agreement: Agreement
    explanations: tuple[ExplanationAgreement, ...]


def compared(teacher: ClassifierOutputs, student: ClassifierOutputs, *, top: int) -> Compared:
    """The agreement of a teacher and a student, whose outputs were computed with ``like`` the teacher's."""
    assert teacher.classes == student.classes and teacher.weights.keys() == student.weights.keys()
    return Compared(
        agreement(teacher.predictions, student.predictions),
        tuple(
            _agreement(method, teacher.weights[method], student.weights[method], top)
            for method in teacher.weights
        ),
    )


def rank_correlation(first_W: npt.ArrayLike, second_W: npt.ArrayLike) -> float | None:
    """Spearman's correlation of two models' weights of the same words; None if undefined."""
    first, second = (np.asarray(values, np.float64) for values in (first_W, second_W))
    if len(first) < FEWEST_WORDS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return spearman(first, second)


def top_overlap(first_W: npt.ArrayLike, second_W: npt.ArrayLike, top: int) -> float | None:
    """The fraction of the ``top`` words by absolute weight that two models share.

    Words of weight 0 are excluded; if both models have fewer than ``top``, the denominator is the longer
    list. None if there are at most ``top`` words, or all weights are 0.
    """
    first, second = (np.abs(np.asarray(values, np.float64)) for values in (first_W, second_W))
    if len(first) <= top:
        return None
    one, other = (_heaviest(weights, top) for weights in (first, second))
    longer = max(len(one), len(other))
    return len(one & other) / longer if longer else None


def _heaviest(sizes_W: npt.NDArray[np.float64], top: int) -> set[int]:
    order = np.argsort(-sizes_W, kind="stable")[:top]
    return {int(place) for place in order if sizes_W[place] > 0}


def _agreement(
    method: Method, teacher: Mapping[str, Weights], student: Mapping[str, Weights], top: int
) -> ExplanationAgreement:
    rows = tuple(_alike(name, own, student[name], top) for name, own in teacher.items())
    chances = [row.by_chance for row in rows if row.overlap is not None and row.by_chance is not None]
    return ExplanationAgreement(
        method=method,
        top=top,
        correlation=_mean([row.correlation for row in rows]),
        overlap=_mean([row.overlap for row in rows]),
        by_chance=float(np.mean(chances)) if chances else None,
        teacher_again=_mean([row.teacher_again for row in rows]),
        student_again=_mean([row.student_again for row in rows]),
        teacher_missing=_missing(teacher.values()),
        student_missing=_missing(student.values()),
        examples=rows,
    )


def _alike(name: str, teacher: Weights, student: Weights, top: int) -> Alike:
    words = len(teacher.values)
    return Alike(
        id=name,
        correlation=rank_correlation(teacher.values, student.values),
        overlap=top_overlap(teacher.values, student.values, top),
        by_chance=top / words if words > top else None,
        teacher_again=_with_itself(teacher),
        student_again=_with_itself(student),
    )


def _with_itself(weights: Weights) -> float | None:
    return None if weights.again is None else rank_correlation(weights.values, weights.again)


def _missing(weights: Iterable[Weights]) -> float | None:
    found = [abs(one.missing) for one in weights if one.missing is not None]
    return float(np.mean(found)) if found else None


def _mean(values: Sequence[float | None]) -> MeanOver | None:
    found = np.array([value for value in values if value is not None])
    if len(found) < 2:
        return None
    interval = paired_bootstrap(found, np.zeros(len(found)))
    stderr = float(found.std(ddof=1)) / len(found) ** 0.5
    return MeanOver(interval.mean, stderr, interval.low, interval.high, len(found))
