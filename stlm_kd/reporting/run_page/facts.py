"""The contents of a report as plain values, independent of rendering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from stlm_kd.artifacts.reports import AdaptationReport, TrainingReport
from stlm_kd.artifacts.run_dir import RunDetails
from stlm_kd.artifacts.saved_results import Results
from stlm_kd.comparison.compare import Comparison
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.recipe import Recipe

Points: TypeAlias = Sequence[tuple[float, float]]
"""Optimizer steps, ascending, with their values."""


@dataclass(frozen=True, slots=True)
class Line:
    """One seed's curve in a panel; lines with the same label share a style."""

    label: str
    seed: str
    points: Points


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves with common axes.

    Attributes:
        group: The heading under which the panel is shown.
        title: What is drawn.
        unit: The unit of its values, if known.
        lines: At least one, with at least one point each.
        is_measured: Whether a label names a metric, not a training.
    """

    group: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    is_measured: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """The training report of a student's seed, or of a teacher."""

    name: str
    seed: int | None
    report: TrainingReport


@dataclass(frozen=True, slots=True)
class RunFacts:
    """The contents of one run.

    Attributes:
        details: Its folder, record and resolved recipe.
        recipe: The recipe; None if this version cannot read it.
        results: Its results; the scores of its teachers if it only adapts.
        scores: The scores of its rows.
        trained: The trainings of the teachers that it trained, and of its students.
        adaptations: By teacher.
        attributions: The attribution pages of its models, by file name.
        lacks: What is missing, one line each.
    """

    details: RunDetails
    recipe: Recipe | None
    results: Results
    scores: ResultsTable
    trained: tuple[Trained, ...]
    adaptations: Mapping[str, AdaptationReport]
    attributions: Mapping[str, str]
    lacks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """All runs of a report.

    Attributes:
        runs: At least one.
        panels: Curves of the students of all runs.
        teacher_panels: Curves of the trainings and adaptations of their teachers.
        not_drawn: Messages on numbers that no curve shows, one for each training.
        comparison: Every row against a baseline; None if nothing is comparable.
        not_compared: The reason, in one line; "" if there is a comparison.
    """

    runs: tuple[RunFacts, ...]
    panels: tuple[Panel, ...]
    teacher_panels: tuple[Panel, ...]
    not_drawn: tuple[str, ...]
    comparison: Comparison | None
    not_compared: str
