"""The command ``eval``: any suites on any models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stlm_kd.data.sources import Source
from stlm_kd.data.sources import documents as read_documents
from stlm_kd.errors import UsageError
from stlm_kd.eval import NEEDS_TEXT
from stlm_kd.eval.results import SuiteResult
from stlm_kd.recipe import load
from stlm_kd.run.folder import RECIPE, RECORD
from stlm_kd.run.models import model_of
from stlm_kd.run.record import write_json
from stlm_kd.run.scoring import SuiteCall, score
from stlm_kd.run.text import held_out


def evaluate(
    models: Sequence[str],
    *,
    suites: Sequence[Mapping[str, Any]],
    documents: Sequence[str],
    output: Path | None,
    trust_remote_code: bool,
) -> dict[str, list[SuiteResult]]:
    """Each model's scores, by the name that it was given.

    Args:
        models: Runs, model folders or Hub ids.
        suites: Each ``{"suite": name, **options}``.
        documents: Files of held-out text for the suites that read it; none: each run's own validation text.
        output: A JSON file for all results, or None.
        trust_remote_code: Whether models may run code that they bring.

    Raises:
        UsageError: A suite that reads text, without any.
    """
    calls = [
        SuiteCall(str(entry["suite"]), {key: value for key, value in entry.items() if key != "suite"})
        for entry in suites
    ]
    needs_text = any(call.suite in NEEDS_TEXT for call in calls)
    texts = _read(documents)
    results = {}
    for name in models:
        held = texts or (_of_run(name) if needs_text else [])
        results[name] = score(model_of(name), calls, held, trust=trust_remote_code)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_json(output, {name: [result.to_json() for result in found] for name, found in results.items()})
    return results


def _read(files: Sequence[str]) -> list[str]:
    return [text for file in files for text in read_documents(Source(path=file))]


def _of_run(name: str) -> list[str]:
    """The validation text of the run that a model belongs to."""
    for folder in (Path(name), *Path(name).resolve().parents):
        if (folder / RECORD).is_file():
            found = held_out(load(str(folder / RECIPE)))
            if found:
                return found
    raise UsageError(
        f"{name}: the suites need held-out text, and this is no run that has some; give --data FILE"
    )
