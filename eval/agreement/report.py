"""Agreement of a teacher and a student classifier: in classes, errors and confidence.

Examples are paired by id, since two classifiers agree only by chance where the orders differ, with κ near 0.
Shapes: N examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.errors import DataError
from stlm_kd.eval.agreement.predictions import (
    Kappa,
    calibration_error,
    cohen_kappa,
    jensen_shannon,
    kl_divergence,
)
from stlm_kd.lazy import np
from stlm_kd.statistics import CONFIDENCE, Difference, McNemar, mcnemar, paired_bootstrap

if TYPE_CHECKING:
    import numpy.typing as npt


Floats: TypeAlias = "npt.NDArray[np.float64]"
Integers: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Predictions:
    """A classifier's outputs for N examples: unique ids, labels (N,), finite logits (N, C), C class names."""

    name: str
    ids: tuple[str, ...]
    labels: Integers
    logits: Floats
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        size = len(self.ids)
        if len(set(self.ids)) < size:
            raise DataError(f"{self.name}: {size - len(set(self.ids))} examples have the id of another")
        assert self.labels.shape == (size,) and self.logits.shape == (size, len(self.classes)) and size > 1
        broken = int((~np.isfinite(self.logits)).any(1).sum())
        if broken:
            raise DataError(f"{self.name}: its logits of {broken} of {size} examples are not finite")

    @property
    def predicted(self) -> Integers:
        return np.asarray(self.logits.argmax(1), np.int64)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        return np.asarray(self.predicted == self.labels)

    def ordered(self, ids: Sequence[str]) -> Predictions:
        place = {name: index for index, name in enumerate(self.ids)}
        order = np.array([place[name] for name in ids])
        return Predictions(self.name, tuple(ids), self.labels[order], self.logits[order], self.classes)


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over examples with its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True, slots=True)
class Errors:
    """The overlap of two models' errors: examples that both get wrong, or only one of them.

    ``same`` are those of ``both`` for which both predict the same class. ``overlap`` is ``both`` divided by
    the examples that either gets wrong, None if neither errs; ``by_chance`` is that of independent errors at
    the same rates. ``consistency`` is κ of being right or wrong ("error consistency": Geirhos, Meding and
    Wichmann, "Beyond accuracy", 2020).
    """

    both: int
    same: int
    only_teacher: int
    only_student: int
    overlap: float | None
    by_chance: float | None
    consistency: Kappa


@dataclass(frozen=True, slots=True)
class Flip:
    """An example that teacher and student classify differently, with the names of the classes."""

    id: str
    label: str
    teacher: str
    student: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """A student compared with its teacher on the same examples.

    ``difference`` is the student's accuracy minus the teacher's, by the paired bootstrap, and ``test``
    McNemar's; ``top1`` is the fraction of examples with the same predicted class; ``kl``, KL(teacher ||
    student), and ``js``, Jensen-Shannon, are in nats. Calibration is the expected calibration error.
    ``flips`` are the examples that they classify differently, in the teacher's order.
    """

    teacher: str
    student: str
    examples: int
    teacher_accuracy: Mean
    student_accuracy: Mean
    difference: Difference
    test: McNemar
    top1: Mean
    kappa: Kappa
    kl: Mean
    js: Mean
    teacher_calibration: float
    student_calibration: float
    errors: Errors
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]


def agreement(teacher: Predictions, student: Predictions) -> Agreement:
    """The agreement of two classifiers by example id; DataError if examples, labels or classes differ."""
    require_same_examples(teacher, student)
    student = student.ordered(teacher.ids)
    same = teacher.predicted == student.predicted
    return Agreement(
        teacher=teacher.name,
        student=student.name,
        examples=len(teacher.ids),
        teacher_accuracy=_mean(teacher.right),
        student_accuracy=_mean(student.right),
        difference=paired_bootstrap(student.right, teacher.right),
        test=mcnemar(student.right, teacher.right),
        top1=_mean(same),
        kappa=cohen_kappa(teacher.predicted, student.predicted),
        kl=_mean(kl_divergence(teacher.logits, student.logits)),
        js=_mean(jensen_shannon(teacher.logits, student.logits)),
        teacher_calibration=calibration_error(teacher.logits, teacher.labels),
        student_calibration=calibration_error(student.logits, student.labels),
        errors=_errors(teacher, student),
        flips=tuple(_flips(teacher, student)),
        notes=tuple(_notes(teacher, student, bool(same.all()))),
    )


def require_same_examples(teacher: Predictions, student: Predictions) -> None:
    """Raise DataError, saying how, if classes, ids or labels of two predictions differ."""
    between = f"{teacher.name} and {student.name} cannot be compared"
    if teacher.classes != student.classes:
        raise DataError(
            f"{between}: their classes are {', '.join(teacher.classes)} and {', '.join(student.classes)}"
        )
    own, other = set(teacher.ids), set(student.ids)
    if own != other:
        example = min(own ^ other)
        raise DataError(
            f"{between}: {len(own & other)} of {len(own)} and {len(other)} ids of examples are shared "
            f"({example!r} is one that is not); score both on the same examples"
        )
    labels = student.ordered(teacher.ids).labels
    unlike = np.flatnonzero(labels != teacher.labels)
    if len(unlike):
        raise DataError(
            f"{between}: {len(unlike)} of {len(own)} examples have other labels (first: "
            f"{teacher.ids[unlike[0]]!r}); score both on the same examples"
        )


def _errors(teacher: Predictions, student: Predictions) -> Errors:
    wrong_teacher, wrong_student = ~teacher.right, ~student.right
    both = wrong_teacher & wrong_student
    either = int((wrong_teacher | wrong_student).sum())
    shares = float(wrong_teacher.mean()), float(wrong_student.mean())
    product = shares[0] * shares[1]
    return Errors(
        both=int(both.sum()),
        same=int((both & (teacher.predicted == student.predicted)).sum()),
        only_teacher=int((wrong_teacher & ~wrong_student).sum()),
        only_student=int((wrong_student & ~wrong_teacher).sum()),
        overlap=int(both.sum()) / either if either else None,
        by_chance=product / (sum(shares) - product) if either else None,
        consistency=cohen_kappa(wrong_teacher, wrong_student),
    )


def _flips(teacher: Predictions, student: Predictions) -> Iterator[Flip]:
    names = teacher.classes
    own, other = teacher.predicted, student.predicted
    for place in np.flatnonzero(own != other):
        label = names[teacher.labels[place]]
        yield Flip(teacher.ids[place], label, names[own[place]], names[other[place]])


def _notes(teacher: Predictions, student: Predictions, is_same: bool) -> Iterator[str]:
    size = len(teacher.ids)
    for one in (teacher, student):
        if len(set(one.predicted.tolist())) == 1:
            yield f"{one.name} predicts one class for all {size} examples, so κ is uninformative"
    if is_same:
        most = 1 - (1 - CONFIDENCE) ** (1 / size)
        yield (
            f"{student.name} agrees on all {size} examples; elsewhere it may differ on up to {most:.1%} "
            "(95 %)"
        )


def _mean(values_N: npt.ArrayLike) -> Mean:
    values = np.asarray(values_N, np.float64)
    return Mean(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)))
