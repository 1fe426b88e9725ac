"""Read ``results.json`` of a run: rows with scores, or reports of adapted teachers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from stlm_kd.artifacts.json_io import AGAIN, read_saved
from stlm_kd.artifacts.record import Pinned
from stlm_kd.artifacts.reports import AdaptationReport
from stlm_kd.artifacts.results import Row, SuiteResult, Texts
from stlm_kd.errors import CheckpointError

RESULTS = "results.json"


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run: rows with scores; for an adaptation run, reports and scores.

    Attributes:
        remarks: The notes below the table; ``verdicts`` are those among them that are verdicts.
        adaptations: The reports by teacher.
        suites: The scores of an adaptation run, by original and adapted teacher.
        pins: The models and data sets of the Hub that the run used.
    """

    rows: tuple[Row, ...] = ()
    remarks: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    adaptations: Mapping[str, AdaptationReport] = field(default_factory=dict)
    suites: Mapping[str, tuple[SuiteResult, ...]] = field(default_factory=dict)
    pins: tuple[Pinned, ...] = ()


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all results in a file share: hashes of texts, by the hash of all of them."""

    texts: Mapping[str, Texts] = field(default_factory=dict)


_RESULTS: TypeAdapter[Results] = TypeAdapter(Results)
_SHARED: TypeAdapter[_Shared] = TypeAdapter(_Shared)


def read_results(path: Path) -> Results:
    """Read the results in a file; CheckpointError if it is damaged or invalid."""
    shared = read_saved(path, _SHARED, remedy=AGAIN)
    found = read_saved(path, _RESULTS, remedy=AGAIN, context=shared.texts)
    if not found.rows and not found.adaptations:
        raise CheckpointError(
            f"{path}: damaged, or of another version: neither rows nor adaptations are in it; {AGAIN}"
        )
    for row in found.rows:
        if len(row.scores) != max(1, len(row.seeds)):
            raise CheckpointError(
                f"{path}: damaged: {row.name} has {len(row.seeds)} seeds and scores of {len(row.scores)}; "
                f"{AGAIN}"
            )
    return found
