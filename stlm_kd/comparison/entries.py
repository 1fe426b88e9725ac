"""The entries of a comparison: rows of finished runs, and models scored by ``stlm-kd eval``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from stlm_kd.artifacts.json_io import read_saved
from stlm_kd.artifacts.results import Row, SavedSuite, Score, SuiteResult
from stlm_kd.artifacts.run_dir import open_run
from stlm_kd.artifacts.saved_results import RESULTS, Results, read_results
from stlm_kd.comparison.average import averaged
from stlm_kd.comparison.metrics import PER_TOKEN, Metric
from stlm_kd.errors import CheckpointError, MissingResourceError, UsageError
from stlm_kd.statistics import nested_means

_SCORES: TypeAdapter[Mapping[str, Sequence[SavedSuite]]] = TypeAdapter(Mapping[str, Sequence[SavedSuite]])
_ANY: TypeAdapter[Mapping[str, JsonValue]] = TypeAdapter(Mapping[str, JsonValue])
_REMEDY = "expected scores from stlm-kd eval --output, or a run's folder; score the models again"
_OF_A_SEED = re.compile(r"(?P<name>.+?)[/\\]seed-(?P<seed>\d+)(?:[/\\]model)?[/\\]?")


@dataclass(frozen=True, slots=True)
class Entry:
    """A teacher, a student with all its seeds, or a model.

    Attributes:
        name: Its name in tables.
        source: The run or file that it comes from, as given by the user.
        kind: ``teacher``, ``adapted``, ``student``, ``control`` or ``model``.
        variant: For a student or control, the name of its folder.
        taught: Whether it was distilled from teachers; None if unknown.
        seeds: Its seeds; () for a single model without a seed.
        scores: The suite results for each seed (one entry if there are no seeds). Several results of one
            suite and label are several fine-tunings of that seed's model.
    """

    name: str
    source: str
    kind: str
    variant: str | None
    taught: bool | None
    seeds: tuple[int, ...]
    scores: tuple[tuple[SuiteResult, ...], ...]

    def results(self, metric: Metric) -> list[list[SuiteResult]]:
        """The results that contain the metric, for each seed in order."""
        return [[result for result in results if _score(result, metric)] for results in self.scores]

    def values(self, metric: Metric) -> tuple[float, ...]:
        """The metric for each seed, averaged over fine-tunings; () unless all seeds have it."""
        groups = [
            [score.value for result in results if (score := _score(result, metric))]
            for results in self.scores
        ]
        return nested_means(groups) if all(groups) else ()

    def score(self, metric: Metric) -> Score | None:
        """The first seed's score, averaged over its fine-tunings."""
        return next((_score(result, metric) for result in averaged(self.results(metric)[0])), None)


def metrics_of(entries: Iterable[Entry]) -> list[Metric]:
    """The requested metrics, without parts of groups and without perplexities per token."""
    found: dict[Metric, None] = {}
    for entry in entries:
        for results in entry.scores:
            for result in results:
                for score in result.scores:
                    if score.part_of is None and score.metric not in PER_TOKEN:
                        found[_metric(result, score)] = None
    return list(found)


def read_entries(sources: Sequence[str]) -> list[Entry]:
    """Read all rows of runs, and all models of score files, with unique names.

    In a file, models whose names end in ``seed-1``, ``seed-2`` and so on are the seeds of one model.

    Args:
        sources: Run folders, or JSON files written by ``stlm-kd eval --output``.

    Raises:
        UsageError: A source is given twice.
        MissingResourceError: A source does not exist.
        CheckpointError: A run has no results, or a file is damaged or of another kind.
    """
    places = [Path(source).resolve() for source in sources]
    twice = sorted({source for source, place in zip(sources, places, strict=True) if places.count(place) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each run or file once")
    found = [entry for source in sources for entry in _read(source)]
    for named in (lambda one: one.name, lambda one: f"{Path(one.source).name}: {one.name}"):
        names = [named(one) for one in found]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{one.source}: {one.name}" for one in found]
    return [replace(one, name=name) for one, name in zip(found, names, strict=True)]


def _read(source: str) -> list[Entry]:
    path = Path(source)
    if not path.exists():
        raise MissingResourceError(
            f"{source}: no such run folder or file of scores; see stlm-kd runs list, or write one with "
            "stlm-kd eval MODEL … --output FILE"
        )
    if path.is_dir():
        run = open_run(path)
        path = path / RESULTS
        if not path.is_file():
            raise MissingResourceError(
                f"{source}: no {RESULTS} in it (the run is {run.record.status}); finish it with the command "
                "that began it"
            )
    if Path(source).is_dir() or {"rows", "remarks"} <= read_saved(path, _ANY, remedy=_REMEDY).keys():
        found = _of_run(read_results(path), source)
    else:
        found = _of_file(read_saved(path, _SCORES, remedy=_REMEDY), source)
    _check(path, found)
    if not found:
        raise CheckpointError(f"{path}: no scores in it; give the recipe an eval, or name a suite")
    return found


def _of_run(results: Results, source: str) -> list[Entry]:
    has_teachers = any(row.kind in ("teacher", "adapted") for row in results.rows)
    found = [entry_of(row, source=source) for row in results.rows if any(row.scores)]
    return [
        replace(one, taught=has_teachers and one.kind == "student") if one.variant else one for one in found
    ]


def entry_of(row: Row, *, source: str = "") -> Entry:
    """A row of a run, with ``taught`` unknown."""
    return Entry(
        name=row.name,
        source=source,
        kind=row.kind,
        variant=row.variant,
        taught=None,
        seeds=row.seeds,
        scores=row.scores,
    )


def _of_file(content: Mapping[str, Sequence[SavedSuite]], source: str) -> list[Entry]:
    models: dict[tuple[str, bool], dict[int, tuple[SuiteResult, ...]]] = {}
    for name, suites in content.items():
        found = _OF_A_SEED.fullmatch(name)
        key, seed = ((found["name"], True), int(found["seed"])) if found else ((name, False), 0)
        models.setdefault(key, {})[seed] = tuple(suite.result() for suite in suites)
    return [
        Entry(
            name=name,
            source=source,
            kind="model",
            variant=None,
            taught=None,
            seeds=tuple(sorted(by_seed)) if has_seeds else (),
            scores=tuple(by_seed[seed] for seed in sorted(by_seed)),
        )
        for (name, has_seeds), by_seed in models.items()
    ]


def _check(path: Path, found: Sequence[Entry]) -> None:
    """Refuse duplicate example ids, and seeds without scores."""
    for entry in found:
        if not any(entry.scores):
            raise CheckpointError(f"{path}: damaged: {entry.name} has no scores; {_REMEDY}")
        for result in (result for results in entry.scores for result in results):
            rows = {(row.task, row.id, row.metric) for row in result.examples}
            if len(rows) < len(result.examples):
                raise CheckpointError(
                    f"{path}: damaged: {entry.name}: two examples of {result.suite} have one id; {_REMEDY}"
                )


def _metric(result: SuiteResult, score: Score) -> Metric:
    return Metric(result.suite, result.label, score.task, score.metric, score.higher_is_better)


def _score(result: SuiteResult, metric: Metric) -> Score | None:
    return next((one for one in result.scores if _metric(result, one) == metric), None)
