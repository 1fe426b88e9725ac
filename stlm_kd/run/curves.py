"""Loss curves of several trainings in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from stlm_kd.disk import written_whole
from stlm_kd.tracking import read_metrics


def draw_curves(trainings: Mapping[str, Sequence[Path]], target: Path, *, unit: str) -> None:
    """A PNG with one panel: loss on the labels over steps, one colour for each name, one line for each seed.

    It is the loss on held-out text, or on the training text where none of the trainings has any other.

    Args:
        trainings: By name, the folders that hold ``metrics.jsonl``.
        target: The file to write.
        unit: Of the loss.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    kind = "validation" if any(_losses(f, "validation")[0] for f in chain(*trainings.values())) else "step"
    for index, (name, folders) in enumerate(trainings.items()):
        for number, folder in enumerate(folders):
            steps, losses = _losses(folder, kind)
            axes.plot(
                steps, losses, color=f"C{index}", alpha=0.8, label=name if number == 0 else None, marker="."
            )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"{'held-out' if kind == 'validation' else 'training'} loss ({unit})")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(target) as unfinished:
        figure.savefig(unfinished, format="png")


def _losses(folder: Path, kind: str) -> tuple[list[int], list[float]]:
    steps, losses = [], []
    for line in read_metrics(folder / "metrics.jsonl"):
        step, terms = line["step"], line.get("losses")
        if line["kind"] == kind and isinstance(step, int) and isinstance(terms, dict):
            steps.append(step)
            losses.append(terms["labels"])
    return steps, losses
