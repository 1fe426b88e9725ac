"""A small world for tests of classifiers and models of numbers by the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from stlm_kd.data.labelled.examples import LabelledSource, read_examples
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.load import save_model

BERT: dict[str, int | float | str | bool] = {
    "model_type": "bert", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4,
}  # fmt: skip
ROBERTA = {**BERT, "model_type": "roberta"}
SMALL = (
    "{model_type: bert, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"
)
DISTILBERT = "{model_type: distilbert, dim: 16, hidden_dim: 32, n_layers: 2, n_heads: 2}"
LABELS = ("negative", "positive")
DATA = "data: {train: train.jsonl, validation: valid.jsonl, labels: [negative, positive], context: 32}"
TRAIN = "train: {steps: 6, effective_batch: 16, learning_rate: 3e-3, validate_every: 3, log_every: 1}"
RESTS = "{schedule: step-wise, values: [1, 0, 2], at: [0.3, 0.6]}"
FADES = "{schedule: linear, values: [1, 0], between: [0, 0.8]}"
ADAPT = (
    "{init: mean, tokens: 16k, learning_rate: 2e-2, effective_batch: 16, validate_every: 4, patience: null}"
)

RECIPES = {
    "teacher": f"""
task: classification
student: {{tokenizer: own, architecture: {json.dumps(BERT)}}}
{DATA}
objectives: [{{loss: labels}}]
{TRAIN}
tracking: []
""",
    "whole": f"""
task: classification
student: {{tokenizer: own, architecture: {SMALL}}}
teachers: [{{name: t, recipe: teacher.yaml}}]
{DATA}
objectives:
  - {{loss: labels, weight: 0.5}}
  - {{loss: forward_kl, weight: 0.5, temperature: {{schedule: linear, values: [4, 1]}}}}
  - {{loss: hint, sites: [embeddings, full], weight: {RESTS}}}
  - {{loss: attention_cross_entropy, sites: last, weight: {FADES}}}
{TRAIN}
eval: [classification]
controls: [no-teacher]
seeds: [1, 2]
tracking: []
""",
    "sample": f"""
task: classification
student: {{tokenizer: {{train: bpe, size: 320}}, architecture: {SMALL}}}
data:
  train: {{sample: acceptability, size: 100}}
  validation: {{sample: acceptability, split: validation, size: 40}}
  context: 32
objectives: [{{loss: labels}}]
{TRAIN}
eval: [classification]
tracking: []
""",
    "other-reader": f"""
task: classification
student: {{tokenizer: own, architecture: {DISTILBERT}}}
teachers: [{{name: r, model: roberta}}]
{DATA}
objectives: [{{loss: labels, weight: 0.1}}, {{loss: forward_kl, temperature: 2}}]
{TRAIN}
eval: [classification]
tracking: []
""",
    "layers": f"""
task: classification
student: {{tokenizer: own, init_from: {{teacher: t, model_type: distilbert, layers: every-other}}}}
teachers: [{{name: t, model: bert}}]
{DATA}
objectives: [{{loss: forward_kl}}, {{loss: cosine, sites: last, projection: none}}]
{TRAIN}
eval: [classification]
tracking: []
""",
    "adapts": f"""
task: classification
student: {{tokenizer: own}}
teachers: [{{name: r, model: roberta, adapt: {ADAPT}}}]
{DATA}
eval: [classification]
""",
    "numbers": f"""
task: regression
student: {{tokenizer: own, architecture: {SMALL}}}
teachers: [{{name: n, model: number}}]
data: {{train: train.jsonl, validation: {{path: valid.jsonl, label: strength}}, context: 32}}
objectives:
  - {{loss: labels, weight: 0.5}}
  - {{loss: logit_mse, centred: false, weight: 0.5}}
  - {{loss: normalised_mse, sites: full}}
{TRAIN}
eval: [regression]
tracking: []
""".replace("train: train.jsonl", "train: {path: train.jsonl, label: strength}"),
}
"""Recipes by name; each trains for a second at most."""


def build(folder: Path) -> None:
    """Write examples, a tokenizer, models (of which ``roberta`` has another tokenizer) and recipes."""
    texts = [
        *write_examples(folder / "train.jsonl", "train", 200),
        *write_examples(folder / "valid.jsonl", "validation", 60),
    ]
    own, other = (train_tokenizer(texts, size=size, masked=True) for size in (300, 340))
    own.save_pretrained(folder / "own")
    model_folder(folder / "bert", BERT, own)
    model_folder(folder / "roberta", ROBERTA, other)
    model_folder(folder / "number", BERT, own, labels=())
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def write_examples(path: Path, split: str, size: int) -> list[str]:
    """The texts of generated examples, which a file holds with a class and a number for each."""
    found = read_examples(LabelledSource(sample="sentiment", split=split, size=size), labels=LABELS)
    rows = [
        {"sentence": text, "label": LABELS[label], "strength": float(label) + len(text) / 100}
        for (text,), label in zip(found.texts, found.labels, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [text for (text,) in found.texts]


def model_folder(
    folder: Path,
    fields: dict[str, int | float | str | bool],
    tokenizer: PreTrainedTokenizerFast,
    labels: Sequence[str] = LABELS,
) -> None:
    """A model that tells these classes, or a number, with weights wide enough that its answers differ."""
    model = classifier_from_fields(
        {**fields, "initializer_range": 0.3}, tokenizer, labels=labels, context=32, seed=0
    )
    save_model(model, tokenizer, folder)
