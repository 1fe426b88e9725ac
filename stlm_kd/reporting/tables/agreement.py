"""The output of the command ``agreement``: a table of all models, and the examples on which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from stlm_kd.eval.agreement.report import Agreement
from stlm_kd.eval.attribution.compare import Compared, ExplanationAgreement, MeanOver
from stlm_kd.eval.attribution.explain import ClassifierOutputs
from stlm_kd.eval.attribution.words import words_of
from stlm_kd.reporting.format import (
    UNKNOWN,
    cell,
    interval,
    noted_table,
    numbers,
    with_interval,
    with_stderr,
    words,
)

_WIDEST = 44
"""Width of a column: long model paths wrap, cells do not."""

SHOWN_FLIPS = 10


def agreement_table(found: Agreements) -> Table:
    """One column for each model, the teacher first, with notes below."""
    agreements = [one.agreement for one in found.found]
    notes = dict.fromkeys(note for one in agreements for note in one.notes)
    first, count = agreements[0], len(found.answers[0].classes)
    explained = (
        f"predictions explained on {count} of them; rank correlation: Spearman's, of word weights; "
        "self-correlation: between two draws, a ceiling for any student"
    )
    lines = [
        f"{first.examples:,} examples; ±: standard error; […]: 95 % interval; divergences in nats",
        *([explained] if count else ()),
        *notes,
    ]
    headings = (f"teacher {first.teacher}", *(one.student for one in agreements))
    table = noted_table(lines, *words(""), *numbers(*headings, max_width=_WIDEST))
    rows = [_of_student(one) for one in found.found]
    teachers = _of_teacher(found.found[0])
    for name in rows[0]:
        table.add_row(cell(name), cell(teachers.get(name, "")), *(cell(row[name]) for row in rows))
    return table


def flip_lines(found: Agreements) -> list[str]:
    """The first ``SHOWN_FLIPS`` examples that each student classifies differently from the teacher."""
    lines = []
    for one in (each.agreement for each in found.found):
        lines.append(
            f"{one.student}: {len(one.flips)} flips" + (f", the first {SHOWN_FLIPS}:" if one.flips else "")
        )
        lines += [
            f"  {flip.id}: {flip.teacher} → {flip.student} (label {flip.label}): "
            f"{' | '.join(found.texts[flip.id])}"
            for flip in one.flips[:SHOWN_FLIPS]
        ]
    return lines


def _of_teacher(one: Compared) -> dict[str, str]:
    """The teacher's column, by row name."""
    both = one.agreement
    found = {ACCURACY: with_stderr(both.teacher_accuracy), CALIBRATION: f"{both.teacher_calibration:.4f}"}
    for each in one.explanations:
        found[_itself(each)] = _over(each.teacher_again)
        if each.teacher_missing is not None:
            found[_missing(each)] = f"{each.teacher_missing:.4f}"
    return found


ACCURACY = "accuracy ↑"
CALIBRATION = "calibration error (ECE) ↓"


def _of_student(one: Compared) -> dict[str, str]:
    """A student's column, by row name."""
    both = one.agreement
    found = {
        ACCURACY: with_stderr(both.student_accuracy),
        CALIBRATION: f"{both.student_calibration:.4f}",
        **_beside_teacher(both),
    }
    for each in one.explanations:
        found[f"{each.method}: rank correlation ↑"] = _over(each.correlation)
        if each.student_again is not None:
            found[_itself(each)] = _over(each.student_again)
        chance = "" if each.by_chance is None else f" ({each.by_chance:.4f})"
        found[f"{each.method}: top {each.top} shared (by chance) ↑"] = _over(each.overlap) + chance
        if each.student_missing is not None:
            found[_missing(each)] = f"{each.student_missing:.4f}"
    return found


def _itself(each: ExplanationAgreement) -> str:
    return f"{each.method}: self-correlation"


def _missing(each: ExplanationAgreement) -> str:
    return f"{each.method}: completeness error (nats) ↓"


def _over(mean: MeanOver | None) -> str:
    return UNKNOWN if mean is None else f"{with_stderr(mean)} {interval(mean.low, mean.high)}"


def _beside_teacher(one: Agreement) -> dict[str, str]:
    """A student's agreement with the teacher, by row name."""
    errors, change = one.errors, one.difference
    overlap = UNKNOWN
    if errors.overlap is not None:
        overlap = f"{errors.overlap:.4f} ({errors.by_chance:.4f})"
    return {
        "accuracy - teacher's": f"{change.mean:+.4f} {interval(change.low, change.high, '+.4f')}",
        "McNemar p (mid-p)": f"{one.test.p:.3g}",
        "Cohen's κ": with_interval(one.kappa),
        "same class": with_stderr(one.top1),
        "KL(teacher || student)": with_stderr(one.kl),
        "Jensen-Shannon": with_stderr(one.js),
        "wrong: both (same class), only teacher, only student": (
            f"{errors.both} ({errors.same}), {errors.only_teacher}, {errors.only_student}"
        ),
        "overlap of errors (if independent)": overlap,
        "κ of errors": with_interval(errors.consistency),
        "flips": str(len(one.flips)),
    }


@dataclass(frozen=True, slots=True)
class Agreements:
    """A teacher and its students; ``answers`` begin with the teacher's, ``texts`` has one or two by id."""

    found: tuple[Compared, ...]
    answers: tuple[ClassifierOutputs, ...]
    texts: Mapping[str, tuple[str, ...]]


def as_json(found: Agreements) -> dict[str, Any]:
    """Everything, ready for ``json.dumps``; each example with its label and every model's prediction."""
    teacher = found.answers[0].predictions
    names = teacher.classes
    ordered = [one.predictions.ordered(teacher.ids) for one in found.answers]
    return {
        "agreements": [
            {**asdict(one.agreement), "explanations": [asdict(each) for each in one.explanations]}
            for one in found.found
        ],
        "classes": list(names),
        "examples": [
            {
                "id": example,
                "text": list(found.texts[example]),
                "label": names[teacher.labels[place]],
                "predicted": {one.name: names[one.predicted[place]] for one in ordered},
                **_explanation_json(found, example),
            }
            for place, example in enumerate(teacher.ids)
        ],
    }


def _explanation_json(found: Agreements, example: str) -> dict[str, Any]:
    """An explained example: its words, the explained class, and every model's weights."""
    teacher = found.answers[0]
    if example not in teacher.classes:
        return {}
    return {
        "words": [word.text for word in words_of(found.texts[example])],
        "weights_for": teacher.predictions.classes[teacher.classes[example]],
        "weights": {
            method: {one.predictions.name: asdict(one.weights[method][example]) for one in found.answers}
            for method in teacher.weights
        },
    }
