"""Scores as points on a line, with 95 % intervals: over seeds, or over examples for a single model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.metrics import Estimate, Metric, spread
from stlm_kd.reporting.run_page.charts import WIDTH, short, ticks, widened
from stlm_kd.reporting.run_page.html import Html, tag, text
from stlm_kd.statistics import CONFIDENCE

ROW, TOP, BOTTOM, SIDE = 34, 4, 22, 14
COLOURS = {"student": 0, "control": 1, "adapted": 2, "teacher": 2}


def interval_figure(rows: Sequence[Row], metric: Metric) -> Html:
    """One line for each row that has a finite score in the metric; empty if none has."""
    found = [(row, known) for row in rows if (known := spread(row, metric)) and measurable(known.mean)]
    if not found:
        return Html("")
    low, high = _range([known for _, known in found])
    height = TOP + ROW * len(found) + BOTTOM

    def across(value: float) -> str:
        return f"{SIDE + (value - low) / (high - low) * (WIDTH - 2 * SIDE):.1f}"

    parts = [tag("title", text(metric.label))]
    for value in ticks(low, high, 5):
        ends = {"x1": across(value), "x2": across(value), "y1": str(TOP), "y2": str(height - BOTTOM)}
        parts.append(tag("line", attributes={**ends, "class": "grid"}))
        where = {"x": across(value), "y": str(height - 6), "text-anchor": "middle"}
        parts.append(tag("text", text(short(value)), where))
    for place, (row, known) in enumerate(found):
        parts.append(_mark(row, known, TOP + ROW * place, across))
    svg = tag("svg", parts, {"viewBox": f"0 0 {WIDTH} {height}", "role": "img", "aria-label": metric.label})
    return tag("figure", [tag("figcaption", text(metric.label)), svg])


def _mark(row: Row, known: Estimate, top: float, across: Callable[[float], str]) -> Html:
    colour, y = f"c{COLOURS.get(row.kind, 3)}", str(top + 24)
    tooltip = f"{row.name}: {_label(known)}"
    half = _half(known)
    ends = {"x1": across(known.mean - half), "x2": across(known.mean + half), "y1": y, "y2": y}
    bar = tag("line", tag("title", text(tooltip)), {**ends, "class": f"bar {colour}"})
    point = tag(
        "circle",
        tag("title", text(tooltip)),
        {"cx": across(known.mean), "cy": y, "r": "4", "class": f"point {colour}"},
    )
    return tag(
        "g", [tag("text", text(tooltip), {"x": str(SIDE), "y": str(top + 14), "class": "name"}), bar, point]
    )


def _range(known: Sequence[Estimate]) -> tuple[float, float]:
    low = min(one.mean - _half(one) for one in known)
    high = max(one.mean + _half(one) for one in known)
    return widened(low, high, by=0.05)


def _label(known: Estimate) -> str:
    """The score as in the table, with the kind of ± if it is ambiguous."""
    is_single = len(known.values) == 1 and known.half_width is not None
    return f"{known.mean:.4f} (se {known.half_width:.4f})" if is_single else str(known)


def _half(known: Estimate) -> float:
    """Half the length of the interval; 0 if it is unknown or not finite."""
    half = known.half_width or 0.0
    if len(known.values) == 1:  # a standard error
        half *= NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return half if measurable(half) else 0.0
