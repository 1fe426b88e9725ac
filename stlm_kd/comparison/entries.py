"""The rows of a comparison: those of finished runs, and models scored by ``stlm-kd eval``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.json_io import read_saved
from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.artifacts.run_dir import open_run
from stlm_kd.artifacts.saved_results import RESULTS, read_results
from stlm_kd.errors import CheckpointError, MissingResourceError, UsageError

_Scores = Mapping[str, tuple[SuiteResult, ...]]
_SCORES: TypeAdapter[_Scores] = TypeAdapter(_Scores)
_ANY: TypeAdapter[Mapping[str, JsonValue]] = TypeAdapter(Mapping[str, JsonValue])
_REMEDY = "expected scores from stlm-kd eval --output, or a run's folder; score the models again"
_OF_A_SEED = re.compile(r"(?P<name>.+?)[/\\]seed-(?P<seed>\d+)(?:[/\\]model)?[/\\]?")


def read_rows(sources: Sequence[str]) -> list[Row]:
    """Read all rows of runs, and all models of score files from ``stlm-kd eval --output``, with unique names.

    In a file, models whose names end in ``seed-1``, ``seed-2`` and so on are the seeds of one model.

    Raises:
        UsageError: A source is given twice.
        MissingResourceError: A source does not exist.
        CheckpointError: A run has no results, or a file is damaged or of another kind.
    """
    places = [Path(source).resolve() for source in sources]
    twice = sorted({source for source, place in zip(sources, places, strict=True) if places.count(place) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice; name each run or file once")
    found = [row for source in sources for row in _read(source)]
    for named in (lambda row: row.name, lambda row: f"{Path(row.source).name}: {row.name}"):
        names = [named(row) for row in found]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{row.source}: {row.name}" for row in found]
    return [replace(row, name=name) for row, name in zip(found, names, strict=True)]


def _read(source: str) -> list[Row]:
    path = Path(source)
    if not os.path.exists(path):  # noqa: PTH110  # long names
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
        refuse_changed(path)
        found = _of_run(read_results(path).rows)
    else:
        found = _of_file(read_saved(path, _SCORES, remedy=_REMEDY))
    _check(path, found)
    if not found:
        raise CheckpointError(f"{path}: no scores in it; give the recipe an eval, or name a suite")
    return [replace(row, source=source) for row in found]


def _of_run(rows: Sequence[Row]) -> list[Row]:
    has_teachers = any(row.kind in ("teacher", "adapted") for row in rows)
    return [
        replace(row, taught=has_teachers and row.kind == "student") if row.variant else row
        for row in rows
        if any(row.scores)
    ]


def _of_file(content: _Scores) -> list[Row]:
    models: dict[tuple[str, bool], dict[int, tuple[SuiteResult, ...]]] = {}
    for name, results in content.items():
        found = _OF_A_SEED.fullmatch(name)
        key, seed = ((found["name"], True), int(found["seed"])) if found else ((name, False), 0)
        models.setdefault(key, {})[seed] = results
    return [
        scored_model(
            name, [by_seed[seed] for seed in sorted(by_seed)], seeds=sorted(by_seed) if has_seeds else ()
        )
        for (name, has_seeds), by_seed in models.items()
    ]


def scored_model(
    name: str, scores: Sequence[Sequence[SuiteResult]], *, kind: str = "model", seeds: Sequence[int] = ()
) -> Row:
    """The row of a model of which only the scores are known, for each seed."""
    return Row(name, kind, None, None, None, tuple(seeds), tuple(map(tuple, scores)))


def _check(path: Path, found: Sequence[Row]) -> None:
    """Refuse duplicate example ids, and seeds without scores."""
    for row in found:
        if not any(row.scores):
            raise CheckpointError(f"{path}: damaged: {row.name} has no scores; {_REMEDY}")
        for result in (result for results in row.scores for result in results):
            ids = {(one.task, one.id, one.metric) for one in result.examples}
            if len(ids) < len(result.examples):
                raise CheckpointError(
                    f"{path}: damaged: {row.name}: two examples of {result.suite} have one id; {_REMEDY}"
                )
