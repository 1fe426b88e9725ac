"""Read ``results.json`` of a run: rows with scores, or reports of adapted teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from stlm_kd.artifacts.json_io import AGAIN, read_saved
from stlm_kd.artifacts.reports import AdaptationReport
from stlm_kd.artifacts.results import Count, Row, SavedSuite, SuiteResult
from stlm_kd.errors import CheckpointError

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class _SavedRow:
    """A ``Row`` as written to ``results.json``; fields missing in earlier versions are None."""

    name: str
    kind: str
    variant: str | None
    parameters: Count
    tokens_of_text: Count | None
    tokens_seen: Count | None
    seeds: tuple[int, ...]
    suites: tuple[tuple[SavedSuite, ...], ...]
    steps: Count | None = None
    flops: Count | None = None

    def row(self) -> Row:
        return Row(
            name=self.name,
            kind=self.kind,
            variant=self.variant,
            parameters=self.parameters,
            tokens_of_text=self.tokens_of_text,
            tokens_seen=self.tokens_seen,
            steps=self.steps,
            flops=self.flops,
            seeds=self.seeds,
            scores=tuple(tuple(suite.result() for suite in suites) for suites in self.suites),
        )


@dataclass(frozen=True, slots=True)
class _Saved:
    """The file: ``rows`` and ``remarks`` of a training run, ``adaptations`` of an adaptation run."""

    rows: tuple[_SavedRow, ...] | None = None
    remarks: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    adaptations: Mapping[str, AdaptationReport] | None = None
    suites: Mapping[str, tuple[SavedSuite, ...]] = field(default_factory=dict)


_RESULTS: TypeAdapter[_Saved] = TypeAdapter(_Saved)


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run.

    Attributes:
        rows: Teachers, students and controls with their scores; () for an adaptation run.
        remarks: The notes below the table.
        verdicts: The verdicts among the remarks.
        adaptations: The reports of an adaptation run, by teacher.
        suites: The scores of an adaptation run, by original and adapted teacher.
    """

    rows: tuple[Row, ...] = ()
    remarks: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    adaptations: Mapping[str, AdaptationReport] = field(default_factory=dict)
    suites: Mapping[str, Sequence[SuiteResult]] = field(default_factory=dict)


def read_results(path: Path) -> Results:
    """Read the results in a file.

    Raises:
        CheckpointError: The file is damaged or invalid.
    """
    saved = read_saved(path, _RESULTS, remedy=AGAIN)
    if saved.rows is None and saved.adaptations is None:
        raise CheckpointError(
            f"{path}: damaged, or of another version: neither rows nor adaptations are in it; {AGAIN}"
        )
    for row in saved.rows or ():
        if len(row.suites) != max(1, len(row.seeds)):
            raise CheckpointError(
                f"{path}: damaged: {row.name} has {len(row.seeds)} seeds and scores of {len(row.suites)}; "
                f"{AGAIN}"
            )
    return Results(
        rows=tuple(row.row() for row in saved.rows or ()),
        remarks=saved.remarks,
        verdicts=saved.verdicts,
        adaptations=saved.adaptations or {},
        suites={name: [one.result() for one in found] for name, found in saved.suites.items()},
    )
