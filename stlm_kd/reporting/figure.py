"""A figure with the curves of several trainings: losses, in total and by term, and other metrics."""

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
"""By name, the folders that contain ``metrics.jsonl``, one for each seed."""

FAR_APART = 100
"""Ratio of the largest to the smallest loss term above which the axis is logarithmic."""


def draw_curves(trainings: Trainings, target: Path, *, unit: str) -> None:
    """Draw a PNG with panels over steps: the loss on the labels, the losses by term, and groups of metrics.

    The first panel shows the held-out loss, or the training loss if no training has one. The second is
    omitted if the labels are the only term. One colour for each name, one line for each seed.

    Args:
        trainings: What to draw.
        target: The output file.
        unit: Unit of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
