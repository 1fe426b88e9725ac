"""Outputs and attributions of classifiers, cached as stages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stlm_kd.artifacts.atomic import read_json, write_json
from stlm_kd.artifacts.run_dir import model_of
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.eval.agreement.suite import AnswersOf
from stlm_kd.eval.attribution.explain import (
    AttributionConfig,
    ClassifierOutputs,
    ReadConfig,
    classifier_outputs,
)
from stlm_kd.models.heads.classifiers import load_classifier
from stlm_kd.models.load import to_device
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import outputs_key
from stlm_kd.training.processes import current_device

_FILE = "answers.json"


def cached_outputs(
    name: str,
    examples: Examples,
    reading: ReadConfig,
    explaining: AttributionConfig,
    *,
    model: str,
    trust: bool,
    like: ClassifierOutputs | None = None,
) -> ClassifierOutputs:
    """Load a classifier (run, folder or Hub id) and compute its outputs; see ``classifier_outputs``."""
    folder = model_of(model)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust)
    loaded = load_classifier(folder, examples.label_names, tokenizer=tokenizer, trust_remote_code=trust)
    to_device(loaded, current_device())
    return classifier_outputs(name, loaded, tokenizer, examples, reading, explaining, like=like)


def teacher_outputs(
    teachers: Mapping[str, str], examples: Examples, context: RunContext
) -> dict[str, AnswersOf]:
    """By teacher name, a function that returns its outputs, which are cached between students."""
    return {name: partial(_kept, name, model, examples, context) for name, model in teachers.items()}


def _kept(
    name: str,
    model: str,
    examples: Examples,
    context: RunContext,
    reading: ReadConfig,
    explaining: AttributionConfig,
) -> ClassifierOutputs:
    trust = context.trust_remote_code

    def build(folder: Path) -> None:
        found = cached_outputs(name, examples, reading, explaining, model=model, trust=trust)
        write_json(folder / _FILE, found.to_json())

    key = outputs_key(model, examples, reading, explaining, trust=trust)
    folder = context.stages.make("answers", key, build, what=f"outputs of {name}")
    return ClassifierOutputs.from_json(read_json(folder / _FILE, nan=True), name=name)
