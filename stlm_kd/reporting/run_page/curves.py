"""Builds panels from training metrics: held-out and training losses by term, and other metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from stlm_kd.losses import LABELS
from stlm_kd.reporting.run_page.facts import Line, Panel
from stlm_kd.tracking.jsonl import Line as Logged

PACE = {
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}
MOST = 1e15
"""Largest absolute value that is drawn; steps are from 0 to this."""

Key = tuple[str, str, str]
"""Kind of a line ("step" or "validation"), mapping in it ("" for the line itself), name."""

HELD_OUT, TRAINING, COURSE = "Held-out losses", "Losses on the training data", "Training progress"


@dataclass(frozen=True, slots=True)
class Told:
    """One training's metrics: the lines of its ``metrics.jsonl``."""

    label: str
    seed: str
    lines: Sequence[Logged]


def panels_of(trainings: Sequence[Told], *, unit: str) -> tuple[Panel, ...]:
    """All panels of some trainings, by group, without invalid numbers; ``unit``: of the labels' loss."""
    found = _lines(trainings)

    def plain(group: str, titles: Mapping[str, str]) -> list[Panel]:
        named = ((title, found.get(("step", "", name))) for name, title in titles.items())
        return [Panel(group, title, "", lines) for title, lines in named if lines]

    return (
        *(
            Panel(group, name, unit if name == LABELS else "", lines)
            for kind, group in (("validation", HELD_OUT), ("step", TRAINING))
            for name, lines in _section(found, kind, "losses").items()
            if lines
        ),
        *plain(TRAINING, {"loss": "weighted sum (the objective)"}),
        *measured_panels(trainings),
        *plain(COURSE, PACE),
    )


def left_out(trainings: Sequence[Told]) -> tuple[str, ...]:
    """A message for each training with numbers that ``panels_of`` does not draw."""
    counts = ((one, sum(point is None for _, point in _points(one))) for one in trainings)
    return tuple(
        f"{one.label}{f', seed {one.seed}' if one.seed else ''}: {count:,} of its numbers are not drawn: "
        f"they are not finite, beyond {MOST:g}, or not numeric"
        for one, count in counts
        if count
    )


def loss_panel(trainings: Sequence[Told], *, unit: str) -> Panel | None:
    """The loss on the labels: held-out, or in training if no training has a held-out loss."""
    found = _lines(trainings)
    for kind, group, title in (
        ("validation", HELD_OUT, "held-out loss"),
        ("step", TRAINING, "training loss"),
    ):
        if lines := found.get((kind, "losses", LABELS)):
            return Panel(group, title, unit, lines)
    return None


def term_panel(trainings: Sequence[Told]) -> Panel | None:
    """The training losses, one label for each term of each training; None if the labels are the only term."""
    found = _section(_lines(trainings), "step", "losses")
    lines = _together(found, {name: name for name in found})
    return Panel(TRAINING, "training loss by term", "", lines) if lines and set(found) - {LABELS} else None


def measured_panels(trainings: Sequence[Told]) -> Iterator[Panel]:
    """A panel for each group of metrics, with one label for each metric and training."""
    found = _section(_lines(trainings), "step", "measures")
    for group in dict.fromkeys(name.rpartition("/")[0] for name in found):
        members = {name: name.rpartition("/")[2] for name in found if name.rpartition("/")[0] == group}
        if lines := _together(found, members):
            yield Panel("Measurements", group or "measures", "", lines, is_measured=True)


def _together(found: Mapping[str, tuple[Line, ...]], labels: Mapping[str, str]) -> tuple[Line, ...]:
    """Lines of several names, labelled by name, prefixed with the training's label if there are several."""
    several = len({line.label for name in labels for line in found[name]}) > 1
    return tuple(
        replace(line, label=f"{line.label}: {labels[name]}" if several else labels[name])
        for name in sorted(labels)
        for line in found[name]
    )


def _lines(trainings: Sequence[Told]) -> dict[Key, tuple[Line, ...]]:
    """All numbers by their keys, in the order of their first appearance, as a line for each training."""
    found: dict[Key, tuple[Line, ...]] = {}
    for training in trainings:
        by_key: dict[Key, dict[float, float]] = {}
        for key, point in _points(training):
            by_key.setdefault(key, {}).update([point] if point else [])
        for key, points in by_key.items():
            line = Line(training.label, training.seed, tuple(sorted(points.items())))
            found[key] = (*found.get(key, ()), *([line] if points else []))
    return found


def _section(found: Mapping[Key, tuple[Line, ...]], kind: str, section: str) -> dict[str, tuple[Line, ...]]:
    return {key[2]: lines for key, lines in found.items() if key[:2] == (kind, section)}


def _points(training: Told) -> Iterator[tuple[Key, tuple[float, float] | None]]:
    """Where a training's lines should have a number: its key and the point, None if it cannot be drawn."""
    for line in training.lines:
        kind, step = str(line.get("kind")), line.get("step")
        if kind not in ("step", "validation"):
            continue
        found = [((kind, "", name), line[name]) for name in ("loss", *PACE) if name in line]
        for section in ("losses", "measures"):
            inner = line.get(section, {})
            if isinstance(inner, dict):
                found += [((kind, section, name), value) for name, value in inner.items()]
            else:
                found.append(((kind, "", section), inner))
        for key, value in found:
            if _is_number(step) and step >= 0 and _is_number(value):
                yield key, (float(step), float(value))
            else:
                yield key, None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST
