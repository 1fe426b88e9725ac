"""Builds panels from training metrics: held-out and training losses by term, and other metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

from stlm_kd.losses import LABELS
from stlm_kd.reporting.run_page.facts import Line, Panel, Points
from stlm_kd.tracking.jsonl import Line as Logged

PACE = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
MOST = 1e15
"""Largest absolute value that is drawn; steps are from 0 to this."""

HELD_OUT, TRAINING, COURSE = "Held-out losses", "Losses on the training data", "Training progress"


@dataclass(frozen=True, slots=True)
class Told:
    """One training's metrics: the lines of its ``metrics.jsonl``."""

    label: str
    seed: str
    lines: Sequence[Logged]


def panels_of(trainings: Sequence[Told], *, unit: str) -> tuple[Panel, ...]:
    """All panels of some trainings, by group, without invalid numbers.

    Args:
        trainings: Trainings with the lines of their metrics.
        unit: Unit of the loss on the labels.
    """
    return (
        *_by_name(trainings, "validation", "losses", HELD_OUT, {LABELS: unit}),
        *_by_name(trainings, "step", "losses", TRAINING, {LABELS: unit}),
        *_plain(trainings, TRAINING, {"loss": "weighted sum (the objective)"}),
        *measured_panels(trainings),
        *_plain(trainings, COURSE, PACE),
    )


def left_out(trainings: Sequence[Told]) -> tuple[str, ...]:
    """A message for each training with numbers that ``panels_of`` does not draw."""
    counts = ((one, sum(map(_undrawable, one.lines))) for one in trainings)
    return tuple(
        f"{one.label}{f', seed {one.seed}' if one.seed else ''}: {count:,} of its numbers are not drawn: "
        f"they are not finite, beyond {MOST:g}, or not numeric"
        for one, count in counts
        if count
    )


def _undrawable(line: Logged) -> int:
    """The number of invalid values in a line; all of them if its step is invalid."""
    if line.get("kind") not in ("step", "validation"):
        return 0
    found = [line[key] for key in ("loss", *PACE) if key in line]
    for inner in (line.get("losses", {}), line.get("measures", {})):
        found += inner.values() if isinstance(inner, dict) else [inner]
    return sum(not _is_number(value) for value in found) if _is_step(line.get("step")) else len(found)


def _by_name(
    trainings: Sequence[Told], kind: str, key: str, group: str, units: Mapping[str, str]
) -> Iterator[Panel]:
    """A panel for each name in a mapping that some lines contain."""
    for name in _names(trainings, kind, key):
        lines = _lines(trainings, kind, partial(_inner, key, name))
        if lines:
            yield Panel(group, name, units.get(name, ""), lines)


def _plain(trainings: Sequence[Told], group: str, titles: Mapping[str, str]) -> Iterator[Panel]:
    for key, title in titles.items():
        lines = _lines(trainings, "step", partial(_outer, key))
        if lines:
            yield Panel(group, title, "", lines)


def loss_panel(trainings: Sequence[Told], *, unit: str) -> Panel | None:
    """The loss on the labels: held-out, or in training if no training has a held-out loss."""
    for kind, title in (("validation", "held-out loss"), ("step", "training loss")):
        lines = _lines(trainings, kind, partial(_inner, "losses", LABELS))
        if lines:
            return Panel(HELD_OUT if kind == "validation" else TRAINING, title, unit, lines)
    return None


def term_panel(trainings: Sequence[Told]) -> Panel | None:
    """The training losses, one label for each term of each training; None if the labels are the only term."""
    names = _names(trainings, "step", "losses")
    lines = _together(trainings, "losses", {name: name for name in names})
    return Panel(TRAINING, "training loss by term", "", lines) if lines and set(names) - {LABELS} else None


def measured_panels(trainings: Sequence[Told]) -> Iterator[Panel]:
    """A panel for each group of metrics, with one label for each metric and training."""
    full_names = _names(trainings, "step", "measures")
    for group in dict.fromkeys(name.rpartition("/")[0] for name in full_names):
        members = {name: _last(name) for name in full_names if name.rpartition("/")[0] == group}
        lines = _together(trainings, "measures", members)
        if lines:
            yield Panel("Measurements", group or "measures", "", lines, is_measured=True)


def _together(trainings: Sequence[Told], key: str, labels: Mapping[str, str]) -> tuple[Line, ...]:
    """Lines of several names, labelled by name, prefixed with the training's label if there are several."""
    found = {name: _lines(trainings, "step", partial(_inner, key, name)) for name in labels}
    several = len({line.label for lines in found.values() for line in lines}) > 1
    return tuple(
        Line(f"{line.label}: {labels[name]}" if several else labels[name], line.seed, line.points)
        for name in sorted(labels)
        for line in found[name]
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _names(trainings: Sequence[Told], kind: str, key: str) -> list[str]:
    found = (line.get(key) for training in trainings for line in training.lines if line.get("kind") == kind)
    return list(dict.fromkeys(name for inner in found if isinstance(inner, dict) for name in inner))


def _lines(trainings: Sequence[Told], kind: str, value: Callable[[Logged], object]) -> tuple[Line, ...]:
    found = ((training, _points(training, kind, value)) for training in trainings)
    return tuple(Line(training.label, training.seed, points) for training, points in found if points)


def _points(training: Told, kind: str, value: Callable[[Logged], object]) -> Points:
    points: dict[float, float] = {}
    for line in training.lines:
        step, number = line.get("step"), value(line)
        if line.get("kind") == kind and _is_step(step) and _is_number(number):
            points[float(step)] = float(number)
    return tuple(sorted(points.items()))


def _outer(key: str, line: Logged) -> object:
    return line.get(key)


def _inner(key: str, name: str, line: Logged) -> object:
    inner = line.get(key)
    return inner.get(name) if isinstance(inner, dict) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def _is_step(value: object) -> TypeGuard[float]:
    return _is_number(value) and value >= 0
