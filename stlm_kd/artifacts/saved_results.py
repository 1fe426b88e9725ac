"""What ``results.json`` of a run holds, read back: rows with their scores, or what adapting teachers did."""

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
    """A ``Row`` as written to ``results.json``; what an earlier version did not write is None."""

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
    """The file: ``rows`` and ``remarks`` of a run that trains, ``adaptations`` of one that only adapts."""

    rows: tuple[_SavedRow, ...] | None = None
    remarks: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    adaptations: Mapping[str, AdaptationReport] | None = None
    suites: Mapping[str, tuple[SavedSuite, ...]] = field(default_factory=dict)


_RESULTS: TypeAdapter[_Saved] = TypeAdapter(_Saved)


@dataclass(frozen=True, slots=True)
class Results:
    """What a run found.

    Attributes:
        rows: Teachers, students and controls with their scores; () of a run that only adapts.
        remarks: What its table ends with.
        verdicts: Those of the remarks that are verdicts.
        adaptations: Of a run that only adapts, by teacher.
        suites: Its scores, by teacher as it was and adapted.
    """

    rows: tuple[Row, ...] = ()
    remarks: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    adaptations: Mapping[str, AdaptationReport] = field(default_factory=dict)
    suites: Mapping[str, Sequence[SuiteResult]] = field(default_factory=dict)


def read_results(path: Path) -> Results:
    """The results in a file.

    Raises:
        CheckpointError: It is damaged, or something else.
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
