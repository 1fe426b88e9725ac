"""Score a model with a recipe's suites; a score is kept and found again by model, text and options."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.engine import current_device
from stlm_kd.eval import SUITES
from stlm_kd.eval.results import SuiteResult
from stlm_kd.models.load import load_causal_lm
from stlm_kd.recipe import Recipe
from stlm_kd.run.record import write_json
from stlm_kd.run.stages import Key, model_identity
from stlm_kd.run.text import held_out, text_key
from stlm_kd.run.workshop import Workshop


@dataclass(frozen=True, slots=True)
class SuiteCall:
    """A suite by name and its options."""

    suite: str
    options: Mapping[str, Any]


def suite_calls(recipe: Recipe) -> list[SuiteCall]:
    """The suites of a recipe."""
    return [SuiteCall(entry.suite, entry.options) for entry in recipe.eval]


def score(
    model: str, calls: Sequence[SuiteCall], documents: Sequence[str], *, trust: bool
) -> list[SuiteResult]:
    """What each suite says of a model, which is loaded once.

    Args:
        model: Folder or Hub id.
        calls: Suites with their options.
        documents: Held-out text.
        trust: Whether the model may run code that it brings.
    """
    loaded = load_causal_lm(model, trust_remote_code=trust)
    loaded.to(current_device())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    return [SUITES[call.suite](loaded, tokenizer, documents, **call.options) for call in calls]


def kept_scores(recipe: Recipe, model: str, workshop: Workshop) -> list[SuiteResult]:
    """The recipe's suites on a model, each as a stage."""
    calls = suite_calls(recipe)
    text = text_key(recipe.data.validation or (), 1.0)
    identity = model_identity(model, trust_remote_code=workshop.trust_remote_code)
    keys: list[Key] = [
        {
            "model": identity,
            "suite": call.suite,
            "options": json.loads(json.dumps(call.options)),
            "text": text,
        }
        for call in calls
    ]
    folders = [workshop.stages.path("eval", key) for key in keys]
    missing = [index for index, folder in enumerate(folders) if not folder.is_dir()]
    if missing:
        results = score(
            model, [calls[i] for i in missing], held_out(recipe), trust=workshop.trust_remote_code
        )
        for index, result in zip(missing, results, strict=True):
            workshop.stages.make("eval", keys[index], partial(_write, result))
    return [_read(folder) for folder in folders]


def _write(result: SuiteResult, folder: Path) -> None:
    write_json(folder / "result.json", result.to_json())


def _read(folder: Path) -> SuiteResult:
    return SuiteResult.from_json(json.loads((folder / "result.json").read_text(encoding="utf-8")))
