"""Curves of several trainings in one picture: losses, whole and by term, and what was measured beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.reporting.run_page.curves import Told, loss_panel, measured_panels, term_panel
from stlm_kd.reporting.run_page.facts import Panel
from stlm_kd.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Trainings = Mapping[str, Sequence[Path]]
"""By name, the folders that hold ``metrics.jsonl``, one for each seed."""

FAR_APART = 100
"""Where the largest loss of a term is so many times the smallest, their axis is logarithmic."""


def draw_curves(trainings: Trainings, target: Path, *, unit: str) -> None:
    """A PNG with panels over steps: the loss on the labels, the losses by term, and each group of measures.

    The first is that on held-out text, or on the training text where none of the trainings has any other; the
    second stands only where there are more terms than the labels. One colour for each name, one line for each
    seed.

    Args:
        trainings: What to draw.
        target: The file to write.
        unit: Of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    told = [
        Told(name, str(number), read_metrics(folder / "metrics.jsonl"))
        for name, folders in trainings.items()
        for number, folder in enumerate(folders)
    ]
    by_term = term_panel(told)
    found = [loss_panel(told, unit=unit), by_term, *measured_panels(told)]
    panels = [panel for panel in found if panel is not None]
    several = len(panels) > 1
    rows, columns = (-(-len(panels) // 2), 2) if several else (1, 1)
    figure = Figure(figsize=(6.5 * columns, 4 * rows) if several else (8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, 1 + place)
        _draw(axes, panel)
        if panel is by_term and _far_apart(panel):
            axes.set_yscale("log")
    with written_whole(target) as unfinished:
        figure.savefig(unfinished, format="png")


def _draw(axes: Axes, panel: Panel) -> None:
    labels = list(dict.fromkeys(line.label for line in panel.lines))
    seen: set[str] = set()
    for line in panel.lines:
        label = None if line.label in seen else line.label
        seen.add(line.label)
        steps, values = zip(*line.points, strict=True)
        axes.plot(steps, values, color=f"C{labels.index(line.label)}", alpha=0.8, label=label, marker=".")
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"{panel.title} ({panel.unit})" if panel.unit else panel.title)
    axes.grid(alpha=0.3)
    axes.legend()


def _far_apart(panel: Panel) -> bool:
    values = [value for line in panel.lines for _, value in line.points]
    return 0 < FAR_APART * min(values) < max(values)
