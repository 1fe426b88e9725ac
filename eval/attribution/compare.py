"""How alike a teacher and a student explain what they say: the order of the words' weights, and the heaviest.

Shapes: N examples, W words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stlm_kd.eval.agreement.report import Agreement, agreement
from stlm_kd.eval.attribution.explain import ClassifierOutputs, Method, Weights
from stlm_kd.eval.classification.metrics import spearman
from stlm_kd.statistics import Difference, paired_bootstrap

FEWEST_WORDS = 3
"""Of fewer there are too few orders to speak of a correlation."""


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
    """One example's explanations side by side.

    Attributes:
        id: The example.
        correlation: Spearman's, of the words' weights; None below ``FEWEST_WORDS`` words, or where a model
            gives all words one weight.
        overlap: The share of the heaviest words that they have in common; None where all words would be among
            them.
        by_chance: The overlap to expect of words drawn blindly.
        teacher_again: LIME: the correlation of the teacher's weights with those of another draw.
        student_again: The same of the student's.
    """

    id: str
    correlation: float | None
    overlap: float | None
    by_chance: float | None
    teacher_again: float | None
    student_again: float | None


@dataclass(frozen=True, slots=True)
class ExplanationAgreement:
    """How alike they are by one method; None where fewer than two examples tell.

    Attributes:
        method: ``lime`` or ``integrated-gradients``.
        top: How many of the heaviest words ``overlap`` is of.
        correlation: The mean over examples.
        overlap: The mean over examples.
        by_chance: The overlap to expect of words drawn blindly, on these examples.
        teacher_again: LIME: the teacher with itself by another draw: no student can be expected above it.
        student_again: The student with itself.
        teacher_missing: Of integrated gradients: the mean nats, without sign, that the weights leave out.
        student_missing: The same of the student.
        examples: One by one.
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
    """A student beside its teacher: what they say, and why, by method."""

    agreement: Agreement
    explanations: tuple[ExplanationAgreement, ...]


def compared(teacher: ClassifierOutputs, student: ClassifierOutputs, *, top: int) -> Compared:
    """Both agreements.

    Args:
        teacher: Its answers.
        student: Those of a student, made ``like`` them.
        top: How many of the heaviest words are compared.

    Raises:
        DataError: As ``agreement``.
    """
    assert teacher.classes == student.classes and teacher.weights.keys() == student.weights.keys()
    return Compared(
        agreement(teacher.predictions, student.predictions),
        tuple(
            _agreement(method, teacher.weights[method], student.weights[method], top)
            for method in teacher.weights
        ),
    )


def rank_correlation(first_W: npt.ArrayLike, second_W: npt.ArrayLike) -> float | None:
    """Spearman's correlation of two models' weights of the same words; None where there is none to tell."""
    first, second = (np.asarray(values, np.float64) for values in (first_W, second_W))
    if len(first) < FEWEST_WORDS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return spearman(first, second)


def top_overlap(first_W: npt.ArrayLike, second_W: npt.ArrayLike, top: int) -> float | None:
    """The share of the ``top`` heaviest words, by size without sign, that two models have in common.

    A word of no weight is none of them; where both models have fewer than ``top``, the share is of the longer
    list. None where there are no more than ``top`` words, or neither has a heavy one.
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
    interval: Difference = paired_bootstrap(found, np.zeros(len(found)))
    stderr = float(found.std(ddof=1)) / len(found) ** 0.5
    return MeanOver(interval.mean, stderr, interval.low, interval.high, len(found))
