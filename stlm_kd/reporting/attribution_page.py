"""A self-contained HTML page of texts, with words coloured by attribution, for all models side by side.

Like Figure 2 of the attention study, for any number of texts. The page loads nothing and runs no scripts. All
data and names are escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.compare import Compared
from stlm_kd.eval.attribution.explain import ClassifierOutputs, Method
from stlm_kd.eval.attribution.words import words_of
from stlm_kd.lazy import special
from stlm_kd.reporting.format import with_interval
from stlm_kd.reporting.templating import Cells, render

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


def attribution_page(
    answers: Sequence[ClassifierOutputs], found: Sequence[Compared], texts: Mapping[str, tuple[str, ...]]
) -> str:
    """Render the page.

    ``answers`` are the teacher's outputs, with explained examples, followed by each student's, and ``found``
    each student's agreement with the teacher; ``texts`` has those of each explained example, by id.
    """
    teacher = answers[0].predictions
    classes, students = teacher.classes, len(answers) - 1
    ends = ("against the class", "for the class") if len(classes) > 2 else [f"for {name}" for name in classes]
    return render(
        "attribution_page.html.j2",
        title=f"Word attributions: {teacher.name} and {students} student{'' if students == 1 else 's'}",
        shades=[(_colour(-1), ends[0]), (_colour(1), ends[1])],
        answers=answers,
        agreement=found[0].agreement,
        summary=_summary(found),
        units=UNITS,
        label_of=partial(_label, teacher),
        explained_class={
            example: f", for {classes[target]}" if len(classes) > 2 else ""
            for example, target in answers[0].classes.items()
        },
        chosen=_chosen,
        pieces=lambda example, values: _pieces(texts[example], values),
        numbers=lambda example: _numbers(answers, example, texts[example]),
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


def _label(predictions: Predictions, example: str) -> str:
    return predictions.classes[int(predictions.labels[predictions.ids.index(example)])]


def _chosen(predictions: Predictions, example: str) -> tuple[str, float]:
    """The predicted class of an example, and its probability."""
    chances = special.softmax(predictions.logits[predictions.ids.index(example)])
    best = int(chances.argmax())
    return predictions.classes[best], float(chances[best])


def _pieces(texts: tuple[str, ...], weights_W: Sequence[float]) -> list[list[_Piece]]:
    """The pieces of each text; colours are relative to the largest weight."""
    most = float(np.abs(weights_W).max()) or 1.0
    weighted = list(zip(words_of(texts), weights_W, strict=True))
    sides = []
    for side, text in enumerate(texts):
        pieces, last = [], 0
        for word, weight in weighted:
            if word.side == side:
                between = _Piece(text[last : word.begin])
                pieces += [between, _Piece(word.text, _colour(weight / most), f"{weight:+.4f}")]
                last = word.end
        sides.append([*pieces, _Piece(text[last:])])
    return sides


def _numbers(answers: Sequence[ClassifierOutputs], example: str, texts: tuple[str, ...]) -> Cells:
    """The weights of every word, one column for each method and model."""
    columns = [(one, method) for method in answers[0].weights for one in answers]
    weights = [one.weights[method][example].values for one, method in columns]
    return Cells(
        ["word", *(f"{one.predictions.name}, {method}" for one, method in columns)],
        [
            [word.text, *(f"{w:+.4f}" for w in row)]
            for word, *row in zip(words_of(texts), *weights, strict=True)
        ],
        ["", *["number"] * len(columns)],
        [],
    )


def _colour(share: float) -> str:
    """From white to the darkest blue at -1 and orange at 1.

    >>> _colour(0.0), _colour(1.0), _colour(-1.0)
    ('#ffffff', '#fd8d3c', '#6baed6')
    """
    end = FOR if share > 0 else AGAINST
    mixed = (round(255 + (part - 255) * abs(share)) for part in end)
    return "#" + "".join(f"{part:02x}" for part in mixed)
