"""Runs and files of scores for tests of comparisons."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.results import Json, SuiteResult
from stlm_kd.eval.classification.metrics import classification_scores
from stlm_kd.eval.language_modeling.likelihood import ScoredText
from stlm_kd.eval.language_modeling.perplexity import text_result

LABELS = np.random.default_rng(0).integers(2, size=300)
Scores = Sequence[Sequence[SuiteResult]]


def classified(accuracy: float, seed: int, *, labels: Any = LABELS, prefix: str = "") -> SuiteResult:
    """A classifier that is right on about so large a share of the examples."""
    right = np.random.default_rng(seed).random(len(labels)) < accuracy
    predicted = np.where(right, labels, 1 - labels)
    ids = [f"{prefix}{place}" for place in range(len(labels))]
    found = classification_scores(
        np.eye(2)[predicted], labels, task="examples", ids=ids, suite="classification"
    )
    known: dict[str, Json] = {"labels": dict(zip(ids, labels.tolist(), strict=True)), "texts": f"of {prefix}"}
    return replace(found, report={**found.report, **known})


def read_text(nats: Sequence[float], *, tokens: int = 100, size: int = 400) -> SuiteResult:
    """Documents of some bytes, and what a model's loss on each is."""
    return text_result([ScoredText(one, tokens, size) for one in nats], 0, 64, 32)


def run_folder(folder: Path, rows: Mapping[str, tuple[str, Scores]]) -> str:
    """A finished run: its rows by variant, or by ``teacher NAME``, with a kind and each seed's results."""
    folder.mkdir()
    record = replace(new_record("r", "0" * 64, "stlm-kd distill"), status="done")
    (folder / "run.json").write_text(json.dumps(asdict(record)))
    entries = [
        {
            "name": name,
            "kind": kind,
            "variant": None if kind == "teacher" else name,
            "parameters": 10,
            "tokens_of_text": None,
            "tokens_seen": None,
            "seeds": [] if kind == "teacher" else [*range(1, len(scores) + 1)],
            "suites": [[result.to_json() for result in results] for results in scores],
        }
        for name, (kind, scores) in rows.items()
    ]
    (folder / "results.json").write_text(json.dumps({"rows": entries, "remarks": []}))
    return str(folder)


def score_file(path: Path, models: Mapping[str, Sequence[SuiteResult]]) -> str:
    """As ``stlm-kd eval --output`` writes it."""
    path.write_text(json.dumps({name: [one.to_json() for one in found] for name, found in models.items()}))
    return str(path)


def seeds_of(accuracy: float, first: int, count: int = 3) -> Scores:
    return [[classified(accuracy, first + seed)] for seed in range(count)]


def whole_run(folder: Path) -> str:
    """A run with a teacher, a good student and two controls, each of three seeds."""
    rows = {
        "teacher t": ("teacher", seeds_of(0.97, 50, 1)),
        "student": ("student", seeds_of(0.85, 10)),
        "no-teacher": ("control", seeds_of(0.65, 20)),
        "all-data": ("control", seeds_of(0.66, 30)),
    }
    return run_folder(folder, rows)
