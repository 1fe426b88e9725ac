"""Collects the data of runs from their folders: all files are validated, and missing ones are reported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.reports import REPORT, read_adaptation, read_report
from stlm_kd.artifacts.results import Row
from stlm_kd.artifacts.run_dir import ADAPTATION, TRAINING, provenance_folder, show_run
from stlm_kd.artifacts.saved_results import RESULTS, Results, read_results
from stlm_kd.artifacts.stage_store import STAGE
from stlm_kd.comparison.compare import DEFAULT_SMALLEST, compare
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.errors import (
    CheckpointError,
    DataError,
    MissingResourceError,
    RecipeError,
    StlmKdError,
    UsageError,
)
from stlm_kd.recipe.load import recipe_of
from stlm_kd.reporting.explanations import PAGE
from stlm_kd.reporting.run_page.curves import Told, left_out, panels_of
from stlm_kd.reporting.run_page.facts import ReportFacts, RunFacts, Trained
from stlm_kd.tracking import read_metrics
from stlm_kd.tracking.metrics import UNITS

METRICS = "metrics.jsonl"


def gather(
    runs: Sequence[str], *, baseline: str | None = None, smallest: Smallest = DEFAULT_SMALLEST
) -> ReportFacts:
    """Collect the data of some runs; ``baseline`` and ``smallest`` are as in ``compare``.

    Raises:
        UsageError: A run is given twice, or a baseline or metric does not exist.
        MissingResourceError: A run does not exist.
        CheckpointError: A folder is not a run, or a file in it is damaged; the message names the file.
    """
    twice = sorted({run for run in runs if runs.count(run) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each run once")
    found = [_read(Path(run)) for run in runs]
    students = [training for run in found for training in _students(run, named=len(found) > 1)]
    teachers = [training for run in found for training in _teachers(run, named=len(found) > 1)]
    units = {"" if run.recipe is None else UNITS[run.recipe.task] for run in found}
    unit = units.pop() if len(units) == 1 else ""
    comparison, not_compared = None, ""
    if any(run.results.rows for run in found):
        try:
            comparison = compare([*runs], baseline=baseline, smallest=smallest, lossy="leave out")
        except (DataError, CheckpointError, MissingResourceError) as error:
            not_compared = str(error)
        except UsageError as error:
            if baseline is not None or smallest.by_name:
                raise
            not_compared = str(error)
    return ReportFacts(
        runs=tuple(found if comparison is None else map(_without_verdicts, found)),
        panels=panels_of(students, unit=unit),
        teacher_panels=panels_of(teachers, unit=unit),
        not_drawn=left_out([*students, *teachers]),
        comparison=comparison,
        not_compared=not_compared,
    )


def _read(path: Path) -> RunFacts:
    """The contents of a run's folder."""
    details = show_run(path)
    lacks: list[str] = []
    recipe = None
    try:
        recipe = recipe_of(path)
    except RecipeError as error:
        lacks.append(f"the recipe is not one that this version understands: {error.faults[0]}")
    except StlmKdError as error:
        lacks.append(f"the recipe cannot be read: {error}")
    has_results = os.path.lexists(path / RESULTS)
    if not has_results:
        lacks.append(f"no {RESULTS}: the run is {details.record.status}, so there are no scores")
    else:
        refuse_changed(path / RESULTS)
    results = read_results(path / RESULTS) if has_results else Results()
    taught = [Trained(f"teacher {name}", None, read_report(at)) for name, at in _made(path, TRAINING)]
    students = [
        Trained(name, seed, read_report(folder))
        for name, seed, folder in _trainings(path, results.rows)
        if any(os.path.lexists(folder / file) for file in (REPORT, STAGE))
    ]
    adapted = {name: read_adaptation(folder) for name, folder in _made(path, ADAPTATION)}
    return RunFacts(
        details=details,
        recipe=recipe,
        results=results,
        scores=ResultsTable(results.rows),
        trained=(*taught, *students),
        adaptations={**results.adaptations, **adapted},
        attributions={page.name: _page(page) for page in sorted(path.glob(f"{PAGE}*.html"))},
        lacks=tuple(lacks),
    )


def _without_verdicts(run: RunFacts) -> RunFacts:
    """A run without the verdicts among its remarks, which the comparison of a report repeats."""
    found = run.results
    remarks = tuple(remark for remark in found.remarks if remark not in found.verdicts)
    return replace(run, results=replace(found, remarks=remarks))


def _students(run: RunFacts, *, named: bool) -> Iterator[Told]:
    """The metrics of a run's students and controls."""
    for name, seed, folder in _trainings(run.details.path, run.results.rows):
        refuse_changed(folder / METRICS)
        yield Told(_label(run, name, named), str(seed), read_metrics(folder / METRICS))


def _teachers(run: RunFacts, *, named: bool) -> Iterator[Told]:
    """The metrics of the trainings and adaptations of a run's teachers."""
    for kind in (TRAINING, ADAPTATION):
        for name, folder in _made(run.details.path, kind):
            refuse_changed(folder / METRICS)
            yield Told(_label(run, f"{name}, {kind}", named), "", read_metrics(folder / METRICS))


def _label(run: RunFacts, label: str, named: bool) -> str:
    return f"{run.details.path.name}: {label}" if named else label


def _trainings(path: Path, rows: Sequence[Row]) -> list[tuple[str, int, Path]]:
    """Name, seed and folder of each student's and control's training, in the order of the results."""
    names = {row.variant: row.name for row in rows}
    order = [*names]
    found = []
    for folder in path.glob("students/*/seed-*"):
        variant, seed = folder.parent.name, folder.name.removeprefix("seed-")
        if seed.isdigit() and folder.is_dir():
            place = order.index(variant) if variant in order else len(order)
            found.append((place, variant, int(seed), folder))
    return [(names.get(variant, variant), seed, folder) for _, variant, seed, folder in sorted(found)]


def _made(path: Path, kind: str) -> list[tuple[str, Path]]:
    """By teacher, the folder of its training or its adaptation."""
    folders = sorted(provenance_folder(path).glob(f"*/{kind}"))
    return [(folder.parent.name, folder) for folder in folders if folder.is_dir()]


def _page(path: Path) -> str:
    """The text of a page; a ``CheckpointError`` if it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); write it again: stlm-kd agreement … --html {path}"
        ) from error
