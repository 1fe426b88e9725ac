"""Panels of curves as inline SVG without scripts; tooltips name what is drawn.

All sizes are in units of the view box, one of which is about a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stlm_kd.reporting.run_page.facts import Line, Panel, Points
from stlm_kd.reporting.run_page.html import Html, joined, tag, text

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 34
NUM_COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3")
_FINEST, _SMALLEST = 1e-9, 1e-100
"""Smaller ranges, relative or absolute, are drawn as a single value."""

MOST_POINTS = 150
"""Maximum points of a line; longer lines are thinned evenly."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Maps values to positions in the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The position of a point."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def panel_figure(panel: Panel, order: Sequence[str] = ()) -> Html:
    """A figure with title, axes, curves and a legend.

    Args:
        panel: The panel to draw.
        order: Labels with the same style in all panels; ignored for panels with other labels.
    """
    own = list(dict.fromkeys(line.label for line in panel.lines))
    labels = order if set(own) <= set(order) else own
    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    drawn = [_curve(line, labels.index(line.label), _frame(panel.lines)) for line in panel.lines]
    svg = tag(
        "svg",
        [tag("title", text(title)), _axes(_frame(panel.lines)), *drawn],
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "aria-label": title},
    )
    seeds = sorted({line.seed for line in panel.lines if line.seed})
    note = [tag("span", text(f"one line for each seed: {', '.join(seeds)}"))] if len(seeds) > 1 else []
    legend = tag("div", [*(_key(label, labels.index(label)) for label in own), *note], {"class": "legend"})
    return tag("figure", [tag("figcaption", text(title)), svg, legend])


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range, at most ``most``.

    >>> ticks(0.0, 60.0), ticks(1.23, 1.31, 3)
    ([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0], [1.25, 1.3])
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points, including the first and the last.

    >>> thinned(((0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)), 3)
    ((0, 1.0), (2, 3.0), (4, 5.0))
    """
    if len(points) <= most:
        return points
    return tuple(points[round(place * (len(points) - 1) / (most - 1))] for place in range(most))


def _frame(lines: Sequence[Line]) -> Frame:
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = widened(min(ys), max(ys), by=0.06)
    return Frame((min([0.0, *xs]), max([*xs, 1.0])), (max(0.0, low) if min(ys) >= 0 else low, high))


def widened(low: float, high: float, *, by: float) -> tuple[float, float]:
    """A range extended on both sides by a fraction of itself; a single value becomes wide enough for ticks.

    >>> widened(1.0, 2.0, by=0.5), widened(5.0, 5.0, by=0.5), widened(0.0, 0.0, by=0.5)
    ((0.5, 2.5), (4.5, 5.5), (-0.1, 0.1))
    """
    size = max(abs(low), abs(high))
    space = by * (high - low) if high - low > _FINEST * size else 0.1 * size
    space = space if space > _SMALLEST else 0.1
    return low - space, high + space


def _axes(frame: Frame) -> Html:
    parts = []
    for x in ticks(*frame.x):
        at, _ = frame.place(x, frame.y[0])
        parts += [_line(at, TOP, at, HEIGHT - BOTTOM), _label(at, HEIGHT - BOTTOM + 15, short(x), "middle")]
    for y in ticks(*frame.y, 5):
        _, at = frame.place(frame.x[0], y)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at), _label(LEFT - 6, at + 4, short(y), "end")]
    return joined([*parts, _label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "optimizer step", "middle")])


def _curve(line: Line, index: int, frame: Frame) -> Html:
    name = f"{line.label}, seed {line.seed}" if line.seed else line.label
    places = [(point, frame.place(*point)) for point in thinned(line.points)]
    path = " ".join(f"{x:.1f},{y:.1f}" for _, (x, y) in places)
    look = {"class": f"curve c{index % NUM_COLOURS}", "stroke-dasharray": _dashes(index)}
    parts = [tag("polyline", tag("title", text(name)), {"points": path, **look})]
    for (step, value), (x, y) in places:
        tooltip = f"{name}: {value:.4g} at step {step:,.0f}"
        where = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "2.2", "class": f"point c{index % NUM_COLOURS}"}
        parts.append(tag("circle", tag("title", text(tooltip)), where))
    return tag("g", parts)


def _key(label: str, index: int) -> Html:
    look = {"class": f"curve c{index % NUM_COLOURS}", "stroke-dasharray": _dashes(index)}
    line = tag("line", attributes={"x1": "0", "y1": "6", "x2": "26", "y2": "6", **look})
    picture = tag("svg", line, {"viewBox": "0 0 26 12", "class": "key", "aria-hidden": "true"})
    return tag("span", [picture, text(label)])


def _dashes(index: int) -> str:
    """A dash pattern, so that lines differ without colours too."""
    return DASHES[index % len(DASHES)] or "none"


def _line(x1: float, y1: float, x2: float, y2: float) -> Html:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    return tag("line", attributes={**ends, "class": "grid"})


def _label(x: float, y: float, words: str, anchor: str) -> Html:
    return tag("text", text(words), {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})


def short(value: float) -> str:
    """A number on an axis.

    >>> [short(number) for number in (0.0, 0.25, 1200.0, 2500000.0, 0.00005)]
    ['0', '0.25', '1.2k', '2.5M', '5e-05']
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:g}" if abs(value) < 1e3 else f"{value / 1e3:g}k"
