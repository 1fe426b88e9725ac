"""Curves of several trainings in one picture: their loss, and what was measured beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.disk import written_whole
from stlm_kd.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Trainings = Mapping[str, Sequence[Path]]
"""By name, the folders that hold ``metrics.jsonl``, one for each seed."""

Points = tuple[list[int], list[float]]
"""Optimizer steps, and the value at each."""


def draw_curves(trainings: Trainings, target: Path, *, unit: str) -> None:
    """A PNG with a panel of the loss on the labels over steps, and one for each group of measures.

    The loss is that on held-out text, or on the training text where none of the trainings has any other: one
    colour for each name, one line for each seed.

    Args:
        trainings: What to draw.
        target: The file to write.
        unit: Of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = {name: [_measures(folder) for folder in folders] for name, folders in trainings.items()}
    groups = list(dict.fromkeys(group for found in chain(*measured.values()) for group, _ in found))
    rows, columns = (-(-(1 + len(groups)) // 2), 2) if groups else (1, 1)
    size = (6.5 * columns, 4 * rows) if groups else (8, 5)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Iterator[Axes] = (figure.add_subplot(rows, columns, 1 + i) for i in range(1 + len(groups)))
    _draw_loss(next(panels), trainings, unit)
    for group, axes in zip(groups, panels, strict=True):
        _draw_group(axes, group, measured)
    with written_whole(target) as unfinished:
        figure.savefig(unfinished, format="png")


def _draw_loss(axes: Axes, trainings: Trainings, unit: str) -> None:
    kind = "validation" if any(_losses(f, "validation")[0] for f in chain(*trainings.values())) else "step"
    for index, (name, folders) in enumerate(trainings.items()):
        for number, folder in enumerate(folders):
            _draw(axes, _losses(folder, kind), f"C{index}", name if number == 0 else None)
    _finish(axes, f"{'held-out' if kind == 'validation' else 'training'} loss ({unit})")


def _draw_group(
    axes: Axes, group: str, measured: Mapping[str, Sequence[Mapping[tuple[str, str], Points]]]
) -> None:
    """One colour for each measure of each training that has it, one line for each seed."""
    lines: dict[str, list[Points]] = {}
    having = [
        name for name, seeds in measured.items() if any(of == group for found in seeds for of, _ in found)
    ]
    for name in having:
        for found in measured[name]:
            for (of, measure), points in found.items():
                if of == group:
                    lines.setdefault(measure if len(having) == 1 else f"{name}: {measure}", []).append(points)
    for index, (label, seeds) in enumerate(sorted(lines.items())):
        for number, points in enumerate(seeds):
            _draw(axes, points, f"C{index}", label if number == 0 else None)
    _finish(axes, group)


def _draw(axes: Axes, points: Points, colour: str, label: str | None) -> None:
    axes.plot(*points, color=colour, alpha=0.8, label=label, marker=".")


def _finish(axes: Axes, title: str) -> None:
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(title)
    axes.grid(alpha=0.3)
    axes.legend()


def _losses(folder: Path, kind: str) -> Points:
    steps, losses = [], []
    for line in read_metrics(folder / "metrics.jsonl"):
        step, terms = line["step"], line.get("losses")
        if line["kind"] == kind and isinstance(step, int) and isinstance(terms, dict):
            steps.append(step)
            losses.append(terms["labels"])
    return steps, losses


def _measures(folder: Path) -> dict[tuple[str, str], Points]:
    """By group and name; not each is there at each logged step."""
    found: dict[tuple[str, str], Points] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        step, measures = line["step"], line.get("measures")
        if isinstance(step, int) and isinstance(measures, dict):
            for full_name, value in measures.items():
                group, _, name = full_name.rpartition("/")
                steps, values = found.setdefault((group, name), ([], []))
                steps.append(step)
                values.append(value)
    return found
