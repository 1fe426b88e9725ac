"""Curves and intervals, drawn with matplotlib: a PNG beside a run's results, and SVG within HTML pages.

Pages get plain values, which their templates write and escape: positions, texts, and classes in place of
colours and fonts, so that the style sheet draws for light and dark screens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.artifacts.results import measurable
from stlm_kd.comparison.metrics import Estimate, Metric
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.reporting.run_page.curves import Told, loss_panel, measured_panels, term_panel
from stlm_kd.reporting.run_page.facts import Line, Panel, Points
from stlm_kd.statistics import CONFIDENCE
from stlm_kd.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Trainings = Mapping[str, Sequence[Path]]
"""By name, the folders that contain ``metrics.jsonl``, one for each seed."""

FAR_APART = 100
"""Ratio of the largest to the smallest loss term above which the axis is logarithmic."""

MOST_POINTS = 150
"""Maximum points of a line in a page; longer lines are thinned evenly."""

WIDTH, HEIGHT = 400, 250
"""Pixels of a panel in a page; intervals have the same width, and ``ROW`` pixels for each model."""
ROW = 34

NUM_COLOURS = 8
"""Colours of the pages' style sheet: classes ``c0``, ``c1``, …"""
KINDS = {"student": 0, "control": 1, "adapted": 2, "teacher": 2}
"""Colours of the rows of a run."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve, or the bar of an interval: its CSS class, tooltip, corners, and values with tooltips."""

    colour: str
    name: str
    path: Points
    points: Sequence[tuple[float, float, str]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure of a page; positions are in pixels from the left and from the top.

    Attributes:
        kind: "curves" over steps, or "bars", one below the other.
        height: Of the SVG; all are ``WIDTH`` wide.
        box: Left, top, right and bottom of the axes.
        x_ticks, y_ticks: Positions and numbers.
        curves: In the order of drawing.
        legend: By label, the colour of its curves.
        seeds: The seeds of the curves.
    """

    kind: Literal["curves", "bars"]
    title: str
    height: int
    box: tuple[int, int, int, int]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    curves: Sequence[Curve]
    legend: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[str] = ()
    width: int = WIDTH


def draw_curves(trainings: Trainings, target: Path, *, unit: str) -> None:
    """Draw a PNG with panels over steps: the loss on the labels, the losses by term, and groups of metrics.

    The first panel shows the held-out loss, or the training loss if no training has one; ``unit`` is that of
    the loss. The second is omitted if the labels are the only term. One colour for each name, one line per
    seed.
    """
    metrics = [
        Told(name, str(number), read_metrics(folder / "metrics.jsonl"))
        for name, folders in trainings.items()
        for number, folder in enumerate(folders)
    ]
    by_term = term_panel(metrics)
    found = [loss_panel(metrics, unit=unit), by_term, *measured_panels(metrics)]
    panels = [panel for panel in found if panel is not None]
    several = len(panels) > 1
    rows, columns = (-(-len(panels) // 2), 2) if several else (1, 1)
    size = (6.5 * columns, 4 * rows) if several else (8, 5)
    with open_figure(*size, dpi=120, layout="constrained") as figure:
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, 1 + place)
            _draw(axes, panel.lines, is_log=panel is by_term and _far_apart(panel), marker=".")
            axes.set_ylabel(title_of(panel))
            axes.legend()
        with written_whole(target) as unfinished:
            figure.savefig(unfinished, format="png")


def panel_drawing(panel: Panel, order: Sequence[str] = ()) -> Drawing:
    """A panel for a page; labels have the same style in all panels whose labels ``order`` contains."""
    own = list(dict.fromkeys(line.label for line in panel.lines))
    labels = order if set(own) <= set(order) else own
    colours = {label: f"c{labels.index(label) % NUM_COLOURS}" for label in own}
    lines = [replace(line, points=_thinned(line.points)) for line in panel.lines]
    box = (52, 10, WIDTH - 16, HEIGHT - 34)
    with _page_axes(HEIGHT, box) as axes:
        _draw(axes, lines)
        curves = []
        for line in lines:
            name = f"{line.label}, seed {line.seed}" if line.seed else line.label
            path = _pixels(axes, line.points)
            points = [
                (*at, f"{name}: {y:.4g} at step {x:,.0f}")
                for at, (x, y) in zip(path, line.points, strict=True)
            ]
            curves.append(Curve(colours[line.label], name, path, points))
        ticks = _ticks(axes)
    seeds = sorted({line.seed for line in lines if line.seed})
    return Drawing("curves", title_of(panel), HEIGHT, box, *ticks, curves, colours, seeds)


def interval_drawing(scores: ResultsTable, metric: Metric) -> Drawing | None:
    """Scores as points with 95 % intervals: over seeds, or over examples for a single model.

    One line for each row that has a finite score in the metric; None if none has.
    """
    estimates = ((row, scores.spread(row, metric)) for row in scores.rows)
    found = [(row, known) for row, known in estimates if known and measurable(known.mean)]
    if not found:
        return None
    height = ROW * len(found) + 26
    box = (14, 4, WIDTH - 14, height - 22)
    with _page_axes(height, box) as axes:
        means, halves = [known.mean for _, known in found], [_half(known) for _, known in found]
        places = [place + 0.7 for place in range(len(found))]
        axes.errorbar(means, places, xerr=halves)
        axes.set_ylim(len(found), 0)
        axes.set_yticks([])
        curves = []
        for (row, known), half, y in zip(found, halves, places, strict=True):
            name, mean = f"{row.name}: {_score(known)}", known.mean
            low, high, middle = _pixels(axes, [(mean - half, y), (mean + half, y), (mean, y)])
            curves.append(Curve(f"c{KINDS.get(row.kind, 3)}", name, [low, high], [(*middle, name)]))
        ticks = _ticks(axes)
    return Drawing("bars", metric.label, height, box, *ticks, curves)


def title_of(panel: Panel) -> str:
    """What a panel draws, with its unit."""
    return f"{panel.title} ({panel.unit})" if panel.unit else panel.title


@contextmanager
def open_figure(
    width: float, height: float, *, dpi: int, layout: Literal["constrained"] | None = None
) -> Iterator[Figure]:
    """A figure of some inches in matplotlib's default style; texts are taken as they are, ``$`` too."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {"text.parse_math": False}]):
        yield Figure(figsize=(width, height), dpi=dpi, layout=layout)


@contextmanager
def _page_axes(height: int, box: tuple[int, int, int, int]) -> Iterator[Axes]:
    """Axes in a figure of a page, whose inches stand for pixels from the left and from the top."""
    left, top, right, bottom = box
    with open_figure(WIDTH, height, dpi=1) as figure:
        place = (left / WIDTH, 1 - bottom / height, (right - left) / WIDTH, (bottom - top) / height)
        axes = figure.add_axes(place)
        axes.locator_params(nbins=6)
        yield axes


def _draw(axes: Axes, lines: Sequence[Line], *, is_log: bool = False, marker: str = "") -> None:
    """Draw lines over steps; those with the same label have one colour and one entry in the legend."""
    from matplotlib.ticker import NullFormatter

    colours: dict[str, str] = {}
    for line in lines:
        label = None if line.label in colours else line.label
        colour = colours.setdefault(line.label, f"C{len(colours)}")
        steps, values = zip(*line.points, strict=True)
        axes.plot(steps, values, color=colour, alpha=0.8, label=label, marker=marker)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)
    if is_log:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: short_number(value))
        axis.set_minor_formatter(NullFormatter())
    steps, values = zip(*(point for line in lines for point in line.points), strict=True)
    axes.set_xlim(min(0.0, *steps), max(1.0, *steps))
    if not is_log and min(values) >= 0:
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def _pixels(axes: Axes, points: Points) -> Points:
    """The positions of points in an SVG, whose origin is at the top."""
    height = axes.figure.bbox.height
    return [(round(float(x), 1), round(float(height - y), 1)) for x, y in axes.transData.transform(points)]


def _ticks(axes: Axes) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """The positions and numbers of the ticks of both axes."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    xs = [(float(x), low) for x in axes.get_xticks() if left <= x <= right]
    ys = [(left, float(y)) for y in axes.get_yticks() if low <= y <= high]
    return (
        [(at, short_number(x)) for (at, _), (x, _) in zip(_pixels(axes, xs), xs, strict=True)],
        [(at, short_number(y)) for (_, at), (_, y) in zip(_pixels(axes, ys), ys, strict=True)],
    )


def _thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most ``most`` points, including the first and the last.

    >>> _thinned(((0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0), (4, 5.0)), 3)
    ((0, 1.0), (2, 3.0), (4, 5.0))
    """
    if len(points) <= most:
        return points
    return tuple(points[round(place * (len(points) - 1) / (most - 1))] for place in range(most))


def _far_apart(panel: Panel) -> bool:
    values = [value for line in panel.lines for _, value in line.points]
    return 0 < FAR_APART * min(values) < max(values)


def short_number(value: float) -> str:
    """A number on an axis.

    >>> [short_number(number) for number in (0.0, 0.25, 1200.0, 2500000.0, 0.00005)]
    ['0', '0.25', '1.2k', '2.5M', '5e-05']
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:g}" if abs(value) < 1e3 else f"{value / 1e3:g}k"


def _score(known: Estimate) -> str:
    """The score as in the table, with the kind of ± if it is ambiguous."""
    is_single = len(known.values) == 1 and known.half_width is not None
    return f"{known.mean:.4f} (se {known.half_width:.4f})" if is_single else str(known)


def _half(known: Estimate) -> float:
    """Half the length of the interval; 0 if it is unknown or not finite."""
    half = known.half_width or 0.0
    if len(known.values) == 1:  # a standard error
        half *= NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return half if measurable(half) else 0.0
