"""Curves and intervals, drawn with matplotlib: a PNG beside a run's results, and SVG within HTML pages.

Pages get plain values, which their templates write and escape: positions, texts, and classes in place of
colours and fonts, so that the style sheet draws for light and dark screens. The names in a run do not pass
through matplotlib on their way into a page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.metrics import Estimate, Metric, spread
from stlm_kd.reporting.run_page.curves import Told, loss_panel, measured_panels, term_panel
from stlm_kd.reporting.run_page.facts import Line, Panel, Points
from stlm_kd.statistics import CONFIDENCE
from stlm_kd.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

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
class Stroke:
    """A grid line, a curve or a bar: path data, with classes of the style sheet and a tooltip, if any."""

    path: str
    look: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class Label:
    """A text; ``anchor`` names which end of it stands at the position."""

    x: float
    y: float
    text: str
    anchor: str = "start"
    look: str = "axis"


@dataclass(frozen=True, slots=True)
class Point:
    """A point with its tooltip."""

    x: float
    y: float
    look: str
    tooltip: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG, and what stands around it. Positions are in pixels from the left and from the top.

    Attributes:
        title: What is drawn.
        height: Of the SVG; all are ``WIDTH`` wide.
        strokes: In the order of drawing.
        labels: Of axes and rows.
        points: Above all strokes.
        legend: By label, the colour of its curves.
        seeds: The seeds of the curves, if there are several.
        radius: Of the points.
    """

    title: str
    height: int
    strokes: Sequence[Stroke]
    labels: Sequence[Label]
    points: Sequence[Point]
    legend: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[str] = ()
    radius: float = 2.2
    width: int = WIDTH


def draw_curves(trainings: Trainings, target: Path, *, unit: str) -> None:
    """Draw a PNG with panels over steps: the loss on the labels, the losses by term, and groups of metrics.

    The first panel shows the held-out loss, or the training loss if no training has one. The second is
    omitted if the labels are the only term. One colour for each name, one line for each seed.

    Args:
        trainings: What to draw.
        target: The output file.
        unit: Unit of the loss.
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
    with _figure(*size, dpi=120, layout="constrained") as figure:
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, 1 + place)
            labels = list(dict.fromkeys(line.label for line in panel.lines))
            is_log = panel is by_term and _far_apart(panel)
            _draw(axes, panel.lines, labels, is_log=is_log, marker=".")
            axes.set_ylabel(title_of(panel))
            axes.legend()
        with written_whole(target) as unfinished:
            figure.savefig(unfinished, format="png")


def panel_drawing(panel: Panel, order: Sequence[str] = ()) -> Drawing:
    """A panel for a page.

    Args:
        panel: The panel to draw.
        order: Labels with the same style in all panels; ignored for panels with other labels.
    """
    own = list(dict.fromkeys(line.label for line in panel.lines))
    labels = order if set(own) <= set(order) else own
    colours = {label: f"c{labels.index(label) % NUM_COLOURS}" for label in own}
    lines = [replace(line, points=_thinned(line.points)) for line in panel.lines]
    with _figure(WIDTH, HEIGHT, dpi=1) as figure:
        axes = _page_axes(figure, left=52, right=16, top=10, bottom=34)
        _draw(axes, lines, labels)
        strokes, texts = _grid(axes, HEIGHT)
        texts.append(Label((52 + WIDTH - 16) / 2, HEIGHT - 4, axes.get_xlabel(), "middle"))
        points = []
        for line in lines:
            name = f"{line.label}, seed {line.seed}" if line.seed else line.label
            places = _pixels(axes.transData, line.points, HEIGHT)
            strokes.append(_stroke(places, f"curve {colours[line.label]}", name))
            points += [
                Point(*at, f"point {colours[line.label]}", f"{name}: {y:.4g} at step {x:,.0f}")
                for at, (x, y) in zip(places, line.points, strict=True)
            ]
    seeds = sorted({line.seed for line in lines if line.seed})
    return Drawing(title_of(panel), HEIGHT, strokes, texts, points, colours, seeds if len(seeds) > 1 else ())


def interval_drawing(rows: Sequence[Row], metric: Metric) -> Drawing | None:
    """Scores as points with 95 % intervals: over seeds, or over examples for a single model.

    One line for each row that has a finite score in the metric; None if none has.
    """
    found = [(row, known) for row in rows if (known := spread(row, metric)) and measurable(known.mean)]
    if not found:
        return None
    top, side, bottom = 4, 14, 22
    height = top + ROW * len(found) + bottom
    with _figure(WIDTH, height, dpi=1) as figure:
        axes = _page_axes(figure, left=side, right=side, top=top, bottom=bottom)
        axes.set_ylim(height - bottom, top)
        ends = [(known.mean - _half(known), known.mean + _half(known)) for _, known in found]
        axes.update_datalim([(end, top) for pair in ends for end in pair], updatey=False)
        axes.autoscale_view(scaley=False)
        axes.set_yticks([])
        strokes, texts = _grid(axes, height)
        points = []
        for place, ((row, known), (low, high)) in enumerate(zip(found, ends, strict=True)):
            name, colour = f"{row.name}: {_score(known)}", f"c{KINDS.get(row.kind, 3)}"
            y = top + ROW * place + 24
            first, last, at = _pixels(axes.transData, ((low, y), (high, y), (known.mean, y)), height)
            strokes.append(_stroke((first, last), f"bar {colour}", name))
            points.append(Point(*at, f"point {colour}", name))
            texts.append(Label(side, y - 10, name, look="name"))
    return Drawing(metric.label, height, strokes, texts, points, radius=4)


def title_of(panel: Panel) -> str:
    """What a panel draws, with its unit."""
    return f"{panel.title} ({panel.unit})" if panel.unit else panel.title


@contextmanager
def _figure(
    width: float, height: float, *, dpi: int, layout: Literal["constrained"] | None = None
) -> Iterator[Figure]:
    """A figure of some inches in matplotlib's default style; texts are taken as they are, ``$`` too."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {"text.parse_math": False}]):
        yield Figure(figsize=(width, height), dpi=dpi, layout=layout)


def _page_axes(figure: Figure, *, left: int, right: int, top: int, bottom: int) -> Axes:
    """Axes with margins, in a figure whose inches stand for pixels."""
    width, height = figure.get_size_inches()
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(place)
    axes.locator_params(nbins=6)
    return axes


def _draw(
    axes: Axes, lines: Sequence[Line], labels: Sequence[str], *, is_log: bool = False, marker: str = ""
) -> None:
    """Draw lines over steps; those with the same label have one colour."""
    from matplotlib.ticker import NullFormatter

    seen: set[str] = set()
    for line in lines:
        label = None if line.label in seen else line.label
        seen.add(line.label)
        colour = f"C{labels.index(line.label)}"
        steps, values = zip(*line.points, strict=True)
        axes.plot(steps, values, color=colour, alpha=0.8, label=label, marker=marker)
    axes.set_xlabel("optimizer step")
    axes.grid(alpha=0.3)
    if is_log:
        axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: _short(value))
        axis.set_minor_formatter(NullFormatter())
    steps, values = zip(*(point for line in lines for point in line.points), strict=True)
    axes.set_xlim(min(0.0, *steps), max(1.0, *steps))
    if not is_log and min(values) >= 0:
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))


def _grid(axes: Axes, height: int) -> tuple[list[Stroke], list[Label]]:
    """The grid lines of the axes of an SVG, and their numbers."""
    strokes, labels = [], []
    for x in _ticks(axes.xaxis):
        ends = _pixels(axes.get_xaxis_transform(), ((x, 0), (x, 1)), height)
        strokes.append(_stroke(ends, "grid"))
        labels.append(Label(ends[0][0], ends[0][1] + 15, _short(x), "middle"))
    for y in _ticks(axes.yaxis):
        ends = _pixels(axes.get_yaxis_transform(), ((0, y), (1, y)), height)
        strokes.append(_stroke(ends, "grid"))
        labels.append(Label(ends[0][0] - 6, ends[0][1] + 4, _short(y), "end"))
    return strokes, labels


def _ticks(axis: Axis) -> list[float]:
    low, high = sorted(axis.get_view_interval())
    return [float(value) for value in axis.get_majorticklocs() if low <= value <= high]


def _pixels(transform: Transform, points: Points, height: int) -> Points:
    """The positions of points in an SVG of some height, whose origin is at the top."""
    return tuple((float(across), float(height - up)) for across, up in transform.transform(points))


def _stroke(places: Points, look: str, tooltip: str = "") -> Stroke:
    return Stroke("M " + " L ".join(f"{x:.1f} {y:.1f}" for x, y in places), look, tooltip)


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


def _short(value: float) -> str:
    """A number on an axis.

    >>> [_short(number) for number in (0.0, 0.25, 1200.0, 2500000.0, 0.00005)]
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
