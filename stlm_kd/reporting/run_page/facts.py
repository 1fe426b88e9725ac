"""What a report tells, as plain values that are gathered in one place and drawn in another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stlm_kd.artifacts.record import Record
from stlm_kd.artifacts.reports import AdaptationReport, TrainingReport
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.comparison.compare import Comparison

Points = tuple[tuple[float, float], ...]
"""Optimizer steps, ascending, and a value at each."""


@dataclass(frozen=True, slots=True)
class Line:
    """One seed's curve in a panel; lines of one label are drawn alike."""

    label: str
    seed: str
    points: Points


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with common axes.

    Attributes:
        group: What kind of numbers they are: panels of one group stand together.
        title: What is drawn.
        unit: Of its values, where it is known.
        lines: At least one, with at least one point each.
        is_measured: Whether a label names a measure, not a training.
    """

    group: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training took: of a student's seed, or of a teacher."""

    name: str
    seed: int | None
    report: TrainingReport


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What is known of one run.

    Attributes:
        place: Its folder, as it was named.
        record: What ``run.json`` holds.
        recipe: As resolved.
        plan: What the recipe says, in words; "" where it is not understood.
        synthetic: Whether some of its text or examples are generated.
        rows: Teachers, students and controls with their scores; () for a run that only adapts.
        remarks: What its table ends with.
        trained: The trainings of its students, and of the teachers that it trained.
        adaptations: By teacher.
        teacher_scores: Of a run that only adapts, by teacher as it was and adapted.
        attributions: The pages of its models' explanations, by file name.
        lacks: What it does not have, one line each.
    """

    place: str
    record: Record
    recipe: str
    plan: str
    synthetic: bool
    rows: tuple[Row, ...]
    remarks: tuple[str, ...]
    trained: tuple[Trained, ...]
    adaptations: Mapping[str, AdaptationReport]
    teacher_scores: Mapping[str, Sequence[SuiteResult]]
    attributions: Mapping[str, str]
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All runs of a report.

    Attributes:
        runs: At least one.
        panels: Curves of the students of all runs.
        teacher_panels: Curves of the trainings and adaptations of their teachers.
        not_drawn: Numbers of these that no curve shows, a line for each training.
        comparison: Every row against a baseline; None where nothing compares.
        not_compared: Why, in a line; "" where there is a comparison.
    """

    runs: tuple[RunFacts, ...]
    panels: tuple[Panel, ...]
    teacher_panels: tuple[Panel, ...]
    not_drawn: tuple[str, ...]
    comparison: Comparison | None
    not_compared: str
