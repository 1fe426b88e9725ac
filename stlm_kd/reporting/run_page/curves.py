"""From the metrics of trainings to panels: losses by term, held out and in training, and other measures."""

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
"""Of a number that is drawn; steps are from 0 to this."""

HELD_OUT, TRAINING, COURSE = "Held-out losses", "Losses on the training data", "The course of the training"


@dataclass(frozen=True, slots=True)
class Told:
    """What one training told: the lines of its ``metrics.jsonl``."""

    label: str
    seed: str
    lines: Sequence[Logged]


def panels_of(trainings: Sequence[Told], *, unit: str) -> tuple[Panel, ...]:
    """All panels of some trainings, by group; numbers that are none are left out.

    Args:
        trainings: With the lines of their metrics.
        unit: Of the loss on the labels.
    """
    return (
        *_by_name(trainings, "validation", "losses", HELD_OUT, {LABELS: unit}),
        *_by_name(trainings, "step", "losses", TRAINING, {LABELS: unit}),
        *_plain(trainings, TRAINING, {"loss": "weighted sum, which is minimised"}),
        *measured_panels(trainings),
        *_plain(trainings, COURSE, PACE),
    )


def left_out(trainings: Sequence[Told]) -> tuple[str, ...]:
    """What ``panels_of`` does not draw, one line for each training that has such numbers."""
    counts = ((told, sum(map(_undrawable, told.lines))) for told in trainings)
    return tuple(
        f"{told.label}{f', seed {told.seed}' if told.seed else ''}: {count:,} of its numbers are not drawn: "
        f"they are not finite, beyond {MOST:g}, or no numbers"
        for told, count in counts
        if count
    )


def _undrawable(line: Logged) -> int:
    """The numbers of a line that are none, or all of them where its step is none."""
    if line.get("kind") not in ("step", "validation"):
        return 0
    found = [line[key] for key in ("loss", *PACE) if key in line]
    for inner in (line.get("losses", {}), line.get("measures", {})):
        found += inner.values() if isinstance(inner, dict) else [inner]
    return sum(not _is_number(value) for value in found) if _is_step(line.get("step")) else len(found)


def _by_name(
    trainings: Sequence[Told], kind: str, key: str, group: str, units: Mapping[str, str]
) -> Iterator[Panel]:
    """A panel for each name that a mapping of some lines has."""
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
    """The loss on the labels: held out, or in training where none of them has any other."""
    for kind, title in (("validation", "held-out loss"), ("step", "training loss")):
        lines = _lines(trainings, kind, partial(_inner, "losses", LABELS))
        if lines:
            return Panel(HELD_OUT if kind == "validation" else TRAINING, title, unit, lines)
    return None


def term_panel(trainings: Sequence[Told]) -> Panel | None:
    """The training losses, one label for each term of each training; None where all have only the labels."""
    names = _names(trainings, "step", "losses")
    lines = _together(trainings, "losses", {name: name for name in names})
    return Panel(TRAINING, "training loss by term", "", lines) if lines and set(names) - {LABELS} else None


def measured_panels(trainings: Sequence[Told]) -> Iterator[Panel]:
    """A panel for each group of measures: one label for each measure, of each training that has it."""
    full_names = _names(trainings, "step", "measures")
    for group in dict.fromkeys(name.rpartition("/")[0] for name in full_names):
        members = {name: _last(name) for name in full_names if name.rpartition("/")[0] == group}
        lines = _together(trainings, "measures", members)
        if lines:
            yield Panel("Measurements", group or "measures", "", lines, is_measured=True)


def _together(trainings: Sequence[Told], key: str, labels: Mapping[str, str]) -> tuple[Line, ...]:
    """Lines of several names, each with its label, behind that of its training where there are several."""
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
    found = (line.get(key) for told in trainings for line in told.lines if line.get("kind") == kind)
    return list(dict.fromkeys(name for inner in found if isinstance(inner, dict) for name in inner))


def _lines(trainings: Sequence[Told], kind: str, value: Callable[[Logged], object]) -> tuple[Line, ...]:
    found = ((told, _points(told, kind, value)) for told in trainings)
    return tuple(Line(told.label, told.seed, points) for told, points in found if points)


def _points(told: Told, kind: str, value: Callable[[Logged], object]) -> Points:
    points: dict[float, float] = {}
    for line in told.lines:
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
