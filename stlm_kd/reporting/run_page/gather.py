"""Collects the data of runs from their folders: all files are validated, and missing ones are reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from stlm_kd.artifacts.reports import REPORT, AdaptationReport, read_adaptation, read_report
from stlm_kd.artifacts.run_dir import ADAPTATION, TRAINING, provenance_folder, show_run
from stlm_kd.artifacts.saved_results import RESULTS, Results, read_results
from stlm_kd.comparison.compare import DEFAULT_SMALLEST, compare
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.errors import (
    CheckpointError,
    DataError,
    MissingResourceError,
    RecipeError,
    StlmKdError,
    UsageError,
)
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.load import recipe_of
from stlm_kd.reporting.explanations import PAGE
from stlm_kd.reporting.model_card import is_synthetic
from stlm_kd.reporting.run_page.curves import Told, left_out, panels_of
from stlm_kd.reporting.run_page.facts import ReportFacts, RunFacts, Trained
from stlm_kd.tracking import read_metrics
from stlm_kd.tracking.metrics import UNITS

METRICS = "metrics.jsonl"


def gather(
    runs: Sequence[str], *, baseline: str | None = None, smallest: Smallest = DEFAULT_SMALLEST
) -> ReportFacts:
    """Collect the data of some runs.

    Args:
        runs: Run folders; different ones.
        baseline: The row that the others are compared with; see ``compare``.
        smallest: The smallest difference that matters in each metric.

    Raises:
        UsageError: A run is given twice, or a baseline or metric does not exist.
        MissingResourceError: A run does not exist.
        CheckpointError: A folder is not a run, or a file in it is damaged; the message names the file.
    """
    twice = sorted({run for run in runs if runs.count(run) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each run once")
    gathered = [_Gathered(Path(run)) for run in runs]
    several = len(gathered) > 1
    students = [training for one in gathered for training in one.students(named=several)]
    teachers = [training for one in gathered for training in one.teachers(named=several)]
    units = {one.unit for one in gathered}
    unit = units.pop() if len(units) == 1 else ""
    comparison, not_compared = None, ""
    if any(one.rows for one in gathered):
        try:
            comparison = compare([*runs], baseline=baseline, smallest=smallest, lossy="leave out")
        except (DataError, CheckpointError, MissingResourceError) as error:
            not_compared = str(error)
        except UsageError as error:
            if baseline is not None or smallest.by_name:
                raise
            not_compared = str(error)
    return ReportFacts(
        runs=tuple(one.facts(are_compared=comparison is not None) for one in gathered),
        panels=panels_of(students, unit=unit),
        teacher_panels=panels_of(teachers, unit=unit),
        not_drawn=left_out([*students, *teachers]),
        comparison=comparison,
        not_compared=not_compared,
    )


class _Gathered:
    """One run's folder, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.details = show_run(path)
        self.lacks: list[str] = []
        self.recipe = self._recipe()
        has_results = (path / RESULTS).is_file()
        if not has_results:
            self.lacks.append(
                f"no {RESULTS}: the run is {self.details.record.status}, so there are no scores"
            )
        self.results = read_results(path / RESULTS) if has_results else Results()
        self.rows = self.results.rows

    @property
    def unit(self) -> str:
        """The unit of its loss on the labels."""
        return "" if self.recipe is None else UNITS[self.recipe.task]

    def facts(self, *, are_compared: bool) -> RunFacts:
        """The run's contents; if runs are compared, verdicts are omitted here."""
        recipe = self.recipe
        verdicts = self.results.verdicts if are_compared else ()
        return RunFacts(
            place=str(self.path),
            record=self.details.record,
            recipe=self.details.recipe_yaml,
            plan="" if recipe is None else describe(recipe),
            synthetic=recipe is not None and is_synthetic(recipe),
            rows=self.rows,
            remarks=tuple(remark for remark in self.results.remarks if remark not in verdicts),
            trained=tuple(self._trained()),
            adaptations={**self.results.adaptations, **self._adaptations()},
            teacher_scores=self.results.suites,
            attributions={page.name: _page(page) for page in sorted(self.path.glob(f"{PAGE}*.html"))},
            lacks=tuple(self.lacks),
        )

    def students(self, *, named: bool) -> list[Told]:
        """The metrics of its students' and controls' trainings."""
        names = {row.variant: row.name for row in self.rows}
        return [
            Told(self._named(names.get(variant, variant), named), str(seed), read_metrics(folder / METRICS))
            for variant, seed, folder in self._folders()
        ]

    def teachers(self, *, named: bool) -> list[Told]:
        """The metrics of its teachers' trainings and adaptations."""
        return [
            Told(self._named(f"{name}, {kind}", named), "", read_metrics(folder / METRICS))
            for kind in (TRAINING, ADAPTATION)
            for name, folder in self._made(kind)
        ]

    def _named(self, label: str, named: bool) -> str:
        return f"{self.path.name}: {label}" if named else label

    def _recipe(self) -> Recipe | None:
        try:
            return recipe_of(self.path)
        except RecipeError as error:
            self.lacks.append(f"the recipe is not one that this version understands: {error.faults[0]}")
        except StlmKdError as error:
            self.lacks.append(f"the recipe cannot be read: {error}")
        return None

    def _folders(self) -> list[tuple[str, int, Path]]:
        """Variant, seed and folder of each training, in the order of the results."""
        order = [row.variant for row in self.rows]
        found = []
        for folder in self.path.glob("students/*/seed-*"):
            seed = folder.name.removeprefix("seed-")
            if seed.isdigit() and folder.is_dir():
                found.append((folder.parent.name, int(seed), folder))
        return sorted(
            found, key=lambda one: (order.index(one[0]) if one[0] in order else len(order), *one[:2])
        )

    def _made(self, kind: str) -> list[tuple[str, Path]]:
        """By teacher, the folder of its training or its adaptation."""
        folders = sorted(provenance_folder(self.path).glob(f"*/{kind}"))
        return [(folder.parent.name, folder) for folder in folders if folder.is_dir()]

    def _trained(self) -> Iterable[Trained]:
        names = {row.variant: row.name for row in self.rows}
        for name, folder in self._made(TRAINING):
            yield Trained(f"teacher {name}", None, read_report(folder))
        for variant, seed, folder in self._folders():
            if (folder / REPORT).is_file():
                report = read_report(folder)
                yield Trained(names.get(variant, variant), seed, report)

    def _adaptations(self) -> dict[str, AdaptationReport]:
        made = self._made(ADAPTATION)
        return {name: read_adaptation(at) for name, at in made}


def _page(path: Path) -> str:
    """The text of a page.

    Raises:
        CheckpointError: It is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); write it again: stlm-kd agreement … --html {path}"
        ) from error
