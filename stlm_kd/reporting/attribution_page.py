"""A self-contained HTML page of texts, with words coloured by attribution, for all models side by side.

Like Figure 2 of the attention study, for any number of texts. The page loads nothing and runs no scripts. All
data and names are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

import numpy as np
from scipy.special import softmax

from stlm_kd.eval.agreement.report import Predictions
from stlm_kd.eval.attribution.compare import Compared, MeanOver
from stlm_kd.eval.attribution.explain import ClassifierOutputs, Method, Weights
from stlm_kd.eval.attribution.words import Word, words_of

FOR, AGAINST = (253, 141, 60), (107, 174, 214)
"""The darkest orange and blue: safe for colour blindness, and readable under black text."""

UNITS: Mapping[Method, str] = {
    "lime": "LIME, weights in units of the probability",
    "integrated-gradients": "integrated gradients, weights in nats of the log-odds",
}

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 72rem; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.4rem; line-height: 1.25; }}
h2 {{ font-size: 1rem; margin: 2rem 0 .25rem; border-top: 1px solid #ccc; padding-top: 1rem; }}
h3 {{ font-size: .875rem; font-weight: 600; margin: .75rem 0 0; color: #444; }}
.legend span, .words span {{ border-radius: .2rem; padding: .05rem .2rem; }}
.model {{ padding: .4rem 0; border-bottom: 1px solid #eee; }}
.name {{ font-weight: 600; font-size: .875rem; }}
.words {{ line-height: 2; }}
.said {{ font-size: .875rem; color: #444; }}
.wrong {{ color: #a40000; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .875rem; overflow-wrap: normal; white-space: nowrap; }}
th, td {{ text-align: right; padding: .2rem .6rem; border-bottom: 1px solid #eee; vertical-align: top; }}
td:first-child {{ white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }}
th:first-child, td:first-child, .summary td:nth-child(2), .summary th:nth-child(2) {{ text-align: left; }}
th:first-child, td:first-child {{ padding-left: 0; }}
thead th {{ border-bottom: 1px solid #999; }}
summary {{ cursor: pointer; font-size: .875rem; color: #444; padding: .3rem 0; }}
@media (min-width: 48rem) {{
  .model {{ display: grid; grid-template-columns: 11rem 1fr 15rem; gap: 1rem; align-items: baseline; }}
}}
</style>
</head>
<body>
"""


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
    title = f"Word attributions: {teacher.name} and {_count(len(answers) - 1, 'student')}"
    sections = [
        "\n".join(_example(example, answers, texts[example], teacher)) for example in answers[0].classes
    ]
    parts = [
        _HEAD.format(title=escape(title)),
        f"<h1>{escape(title)}</h1>",
        _legend(teacher.classes),
        _summary(found, len(sections)),
        *sections,
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _legend(classes: Sequence[str]) -> str:
    ends = ("against the class", "for the class") if len(classes) > 2 else (f"for {name}" for name in classes)
    against, towards = (escape(end) for end in ends)
    return (
        f'<p class="legend"><span style="background:{_colour(-1)}">{against}</span> '
        f'<span style="background:{_colour(1)}">{towards}</span> — darker is stronger; scaled to each '
        "model's largest weight in a text. The value of a word is in its tooltip, and under “numbers”.</p>"
    )


def _summary(found: Sequence[Compared], explained: int) -> str:
    """The agreement over all examples, one row for each student and method."""
    top = found[0].explanations[0].top
    heads = [
        "student",
        "by",
        "rank correlation",
        "teacher self-correlation",
        f"top {top} shared",
        "κ of the classes",
    ]
    rows = []
    for one in found:
        agreement = one.agreement
        kappa = agreement.kappa
        interval = "—" if kappa.value is None else f"{kappa.value:.3f} [{kappa.low:.3f}, {kappa.high:.3f}]"
        for each in one.explanations:
            means = (each.correlation, each.teacher_again, each.overlap)
            rows.append([agreement.student, each.method, *map(_mean, means), interval])
    return (
        f"<p>Students and {escape(found[0].agreement.teacher)}: κ on {found[0].agreement.examples:,} "
        f"examples, word weights on the {explained} below; means with 95 % intervals.</p>\n"
        f'<div class="summary">{_table(heads, rows)}</div>'
    )


def _mean(mean: MeanOver | None) -> str:
    return "—" if mean is None else f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def _example(
    example: str, answers: Sequence[ClassifierOutputs], texts: tuple[str, ...], teacher: Predictions
) -> Iterator[str]:
    label = teacher.classes[teacher.labels[teacher.ids.index(example)]]
    target = teacher.classes[answers[0].classes[example]]
    words = words_of(texts)
    yield f"<h2>{escape(example)}: {escape(label)}</h2>"
    for method in answers[0].weights:
        for_class = f", for {escape(target)}" if len(teacher.classes) > 2 else ""
        yield f"<h3>{UNITS[method]}{for_class}</h3>"
        for one in answers:
            yield _model(one, example, one.weights[method][example], texts, words, label)
    heads = [
        "word",
        *(f"{one.predictions.name}, {method}" for method in answers[0].weights for one in answers),
    ]
    columns = [one.weights[method][example].values for method in answers[0].weights for one in answers]
    rows = [[word.text, *(f"{column[place]:+.4f}" for column in columns)] for place, word in enumerate(words)]
    yield f"<details><summary>numbers</summary>{_table(heads, rows)}</details>"


def _model(
    one: ClassifierOutputs,
    example: str,
    weights: Weights,
    texts: tuple[str, ...],
    words: Sequence[Word],
    label: str,
) -> str:
    predictions = one.predictions
    chances = softmax(predictions.logits[predictions.ids.index(example)])
    best = int(chances.argmax())
    is_right = predictions.classes[best] == label
    wrong = "" if is_right else ' <span class="wrong">(not its label)</span>'
    return (
        f'<div class="model"><div class="name">{escape(predictions.name)}</div>'
        f'<div class="words">{_coloured(texts, words, weights.values)}</div>'
        f'<div class="said">{escape(predictions.classes[best])} {chances[best]:.3f}{wrong}</div></div>'
    )


def _coloured(texts: tuple[str, ...], words: Sequence[Word], weights_W: Sequence[float]) -> str:
    most = float(np.abs(weights_W).max()) or 1.0
    sides = []
    for side, text in enumerate(texts):
        parts, last = [], 0
        for word, weight in zip(words, weights_W, strict=True):
            if word.side != side:
                continue
            parts.append(escape(text[last : word.begin]))
            parts.append(
                f'<span style="background:{_colour(weight / most)}" title="{weight:+.4f}">'
                f"{escape(word.text)}</span>"
            )
            last = word.end
        sides.append("".join([*parts, escape(text[last:])]))
    return "<br>".join(sides)


def _colour(share: float) -> str:
    """From white to the darkest blue at -1 and orange at 1.

    >>> _colour(0.0), _colour(1.0), _colour(-1.0)
    ('#ffffff', '#fd8d3c', '#6baed6')
    """
    end = FOR if share > 0 else AGAINST
    mixed = (round(255 + (part - 255) * abs(share)) for part in end)
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
