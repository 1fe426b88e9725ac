"""A self-contained HTML page of texts, with words coloured by attribution, for all models side by side.

Like Figure 2 of the attention study, for any number of texts. The page loads nothing and runs no scripts. All
data and names are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from stlm_kd.eval.attribution.compare import Compared
from stlm_kd.eval.attribution.explain import ClassifierOutputs, Method
from stlm_kd.eval.attribution.words import Word, words_of
from stlm_kd.reporting.format import with_interval
from stlm_kd.reporting.html import Cells, render

FOR, AGAINST = (253, 141, 60), (107, 174, 214)
"""The darkest orange and blue: safe for colour blindness, and readable under black text."""

UNITS: Mapping[Method, str] = {
    "lime": "LIME, weights in units of the probability",
    "integrated-gradients": "integrated gradients, weights in nats of the log-odds",
}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word with its colour and weight, or the text between two words."""

    text: str
    colour: str = ""
    weight: str = ""


@dataclass(frozen=True, slots=True)
class _Model:
    """A model's prediction for an example, and the pieces of each of its texts."""

    name: str
    sides: Sequence[Sequence[_Piece]]
    predicted: str
    is_wrong: bool


@dataclass(frozen=True, slots=True)
class _Example:
    """An explained example: by method, a heading and all models."""

    title: str
    methods: Sequence[tuple[str, Sequence[_Model]]]
    numbers: Cells


def attribution_page(
    answers: Sequence[ClassifierOutputs], found: Sequence[Compared], texts: Mapping[str, tuple[str, ...]]
) -> str:
    """Render the page.

    Args:
        answers: The teacher's outputs, with explained examples, followed by each student's.
        found: Each student's agreement with the teacher.
        texts: The texts of each explained example, by id.
    """
    teacher = answers[0].predictions
    students = len(answers) - 1
    classes = teacher.classes
    ends = ("against the class", "for the class") if len(classes) > 2 else [f"for {name}" for name in classes]
    return render(
        "attribution_page.html.j2",
        title=f"Word attributions: {teacher.name} and {students} student{'' if students == 1 else 's'}",
        against=ends[0],
        towards=ends[1],
        colour=_colour,
        teacher=found[0].agreement.teacher,
        num_examples=f"{found[0].agreement.examples:,}",
        summary=_summary(found),
        examples=[_example(example, answers, texts[example]) for example in answers[0].classes],
    )


def _summary(found: Sequence[Compared]) -> Cells:
    """The agreement over all examples, one row for each student and method."""
    top = found[0].explanations[0].top
    heads = ["rank correlation", "teacher self-correlation", f"top {top} shared", "κ of the classes"]
    rows = [
        [
            one.agreement.student,
            each.method,
            *(
                with_interval(mean, ".3f")
                for mean in (each.correlation, each.teacher_again, each.overlap, one.agreement.kappa)
            ),
        ]
        for one in found
        for each in one.explanations
    ]
    return Cells(["student", "by", *heads], rows, ["", "", *["number"] * len(heads)], [])


def _example(example: str, answers: Sequence[ClassifierOutputs], texts: tuple[str, ...]) -> _Example:
    teacher = answers[0].predictions
    label = teacher.classes[teacher.labels[teacher.ids.index(example)]]
    target = teacher.classes[answers[0].classes[example]]
    for_class = f", for {target}" if len(teacher.classes) > 2 else ""
    words = words_of(texts)
    methods = answers[0].weights
    weights = {method: [one.weights[method][example].values for one in answers] for method in methods}
    columns = [values for by_model in weights.values() for values in by_model]
    numbers = Cells(
        ["word", *(f"{one.predictions.name}, {method}" for method in methods for one in answers)],
        [[word.text, *(f"{column[place]:+.4f}" for column in columns)] for place, word in enumerate(words)],
        ["", *["number"] * len(columns)],
        [],
    )
    shown = [
        (
            f"{UNITS[method]}{for_class}",
            [
                _model(one, example, _coloured(texts, words, values), label)
                for one, values in zip(answers, weights[method], strict=True)
            ],
        )
        for method in methods
    ]
    return _Example(f"{example}: {label}", shown, numbers)


def _model(one: ClassifierOutputs, example: str, sides: Sequence[Sequence[_Piece]], label: str) -> _Model:
    predictions = one.predictions
    chances = softmax(predictions.logits[predictions.ids.index(example)])
    best = int(chances.argmax())
    predicted = predictions.classes[best]
    return _Model(predictions.name, sides, f"{predicted} {chances[best]:.3f}", predicted != label)


def _coloured(
    texts: tuple[str, ...], words: Sequence[Word], weights_W: Sequence[float]
) -> list[list[_Piece]]:
    """The pieces of each text; colours are relative to the largest weight."""
    most = float(np.abs(weights_W).max()) or 1.0
    sides = []
    for side, text in enumerate(texts):
        pieces, last = [], 0
        for word, weight in zip(words, weights_W, strict=True):
            if word.side == side:
                between = _Piece(text[last : word.begin])
                pieces += [between, _Piece(word.text, _colour(weight / most), f"{weight:+.4f}")]
                last = word.end
        sides.append([*pieces, _Piece(text[last:])])
    return sides


def _colour(share: float) -> str:
    """From white to the darkest blue at -1 and orange at 1.

    >>> _colour(0.0), _colour(1.0), _colour(-1.0)
    ('#ffffff', '#fd8d3c', '#6baed6')
    """
    end = FOR if share > 0 else AGAINST
    mixed = (round(255 + (part - 255) * abs(share)) for part in end)
    return "#" + "".join(f"{part:02x}" for part in mixed)
