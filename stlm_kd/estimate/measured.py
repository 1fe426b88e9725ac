"""From which computation on a distilled student was better than its control, in a run that is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import fmean

from stlm_kd.artifacts.reports import read_report
from stlm_kd.artifacts.run_dir import RECORD
from stlm_kd.pipeline.stages.students import student_folder
from stlm_kd.reporting.run_page.curves import HELD_OUT, Told, loss_panel
from stlm_kd.reporting.run_page.gather import METRICS
from stlm_kd.tracking.jsonl import read_metrics

Curve = Sequence[tuple[float, float]]
"""FLOPs of the training so far, and the loss there, in this order."""


@dataclass(frozen=True, slots=True)
class BreakEven:
    """Distillation against the control at equal compute, by the validations of one pair of trainings.

    Attributes:
        seed: Of both.
        flops: FLOPs of the whole training of the student.
        after: FLOPs from which on the student's best checkpoint so far is better than the control's after as
            many; None where it is not at the end.
        loss: Of the student's best checkpoint, nats per label.
        control_loss: Of the control's.
    """

    seed: int
    flops: float
    after: float | None
    loss: float
    control_loss: float


def break_evens(run: Path) -> tuple[BreakEven, ...]:
    """One for each seed whose student and control at equal compute are finished; () for no run's folder.

    Raises:
        CheckpointError: A report or the metrics of a training cannot be read.
    """
    if not (run / RECORD).is_file():
        return ()
    found = []
    for folder in sorted((run / "students" / "student").glob("seed-*")):
        seed = int(folder.name.removeprefix("seed-"))
        own, control = curve(folder), curve(student_folder(run, "equal-compute", seed))
        if own and control:
            losses = (min(loss for _, loss in one) for one in (own, control))
            found.append(BreakEven(seed, own[-1][0], overtakes(own, control), *losses))
    return tuple(sorted(found, key=lambda one: one.seed))


def curve(folder: Path) -> Curve:
    """The validations of a finished training; () where there is none, or its FLOPs were not counted."""
    if not (folder / "report.json").is_file():
        return ()
    report = read_report(folder)
    if report.flops is None or not report.steps:
        return ()
    told = Told("", "", read_metrics(folder / METRICS))
    panel = loss_panel([told], unit="")
    if panel is None or panel.group != HELD_OUT:
        return ()
    per_step = report.flops / report.steps
    return [(step * per_step, loss) for step, loss in panel.lines[0].points]


def overtakes(own: Curve, control: Curve) -> float | None:
    """FLOPs from which on the best loss so far is lower than the other one's; None if it is not at the end.

    >>> overtakes([(0, 9.0), (2, 5.0), (4, 3.0)], [(0, 9.0), (1, 4.0), (3, 3.5), (4, 3.5)])
    4
    >>> overtakes([(0, 9.0), (2, 5.0)], [(0, 9.0), (1, 4.0)]) is None
    True
    """
    since = None
    for flops in sorted({flops for flops, _ in (*own, *control)}):
        best = [
            min((loss for at, loss in one if at <= flops), default=float("inf")) for one in (own, control)
        ]
        if best[0] >= best[1]:
            since = None
        elif since is None:
            since = flops
    return since


def _best(one: Curve, flops: float) -> float:
    return min((loss for at, loss in one if at <= flops), default=inf)


def summary(found: Sequence[BreakEven]) -> str:
    """One line on all seeds."""
    gain = fmean(one.control_loss - one.loss for one in found)
    after = [one.after / one.flops for one in found if one.after is not None]
    if len(after) < len(found):
        return (
            f"at its end {len(after)} of {len(found)} seeds were better than their control at equal compute, "
            f"by {gain:+.3f} nats in the mean"
        )
    return (
        f"from {fmean(after):.0%} of the student's FLOPs on every seed was better than its control at equal "
        f"compute ({min(after):.0%} to {max(after):.0%}), at the end by {gain:.3f} nats"
    )
