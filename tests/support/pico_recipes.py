"""The shipped recipes at a size that trains in a second, with their inputs, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.load import save_model
from stlm_kd.recipe import Recipe, load, plain
from tests.support.pico import pico_model

STEPS = 20
LABELS = ("negative", "positive")
BODIES = {"clm": {"gpt2": "gpt2", "llama": "llama"}, "mlm": {"minilm": "bert-6"}}
"""By task, the folder of a teacher by a word that its name has."""
SMALL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
    "bert": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def build(folder: Path) -> None:
    """Write text, examples, tokenizers and models."""
    texts = list(sample_documents("train", size=60_000, seed=0))
    (folder / "train.txt").write_text("\n".join(texts[10:]), encoding="utf-8")
    (folder / "valid.txt").write_text("\n".join(texts[:10]), encoding="utf-8")
    for name, few in (("train.jsonl", texts[40:120]), ("valid.jsonl", texts[:12])):
        rows = [{"one": text[:60], "two": text[60:100], "label": LABELS[len(text) % 2]} for text in few]
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    own, other = (train_tokenizer(texts, size=size) for size in (300, 330))
    masked = train_tokenizer(texts, size=300, masked=True)
    own.save_pretrained(folder / "own")
    masked.save_pretrained(folder / "own-masked")
    for seed, (name, family, tokenizer, layers) in enumerate(
        [
            ("gpt2", "gpt2", other, 4),
            ("llama", "llama", other, 4),
            ("qwen2", "qwen2", other, 4),
            ("gpt2-own", "gpt2", own, 4),
            ("bert-12", "bert", masked, 12),
            ("bert-6", "bert", masked, 6),
            ("distilbert", "distilbert", masked, 6),
        ]
    ):
        model = pico_model(family, vocabulary=len(tokenizer), layers=layers, seed=seed)
        save_model(model, tokenizer, folder / name)
    for layers in (6, 12):
        fields: dict[str, int | float | str | bool] = {
            "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers,
            "num_attention_heads": 2, "initializer_range": 0.3,
        }  # fmt: skip
        judge = classifier_from_fields(fields, masked, labels=LABELS, context=32, seed=layers)
        save_model(judge, masked, folder / f"judge-{layers}")


def write_pico(name: str, folder: Path) -> Path:
    """A recipe of the package as a file that names what ``build`` wrote: same objectives, 20 steps."""
    recipe = load(name)
    values = plain(recipe)
    values["student"] = _student(recipe, values["student"])
    values["teachers"] = [_teacher(recipe, teacher) for teacher in values["teachers"]]
    values["data"] = _data(recipe, values["data"])
    values.update(eval=[], controls=[], seeds=[1], tracking=[])
    if "train" in values:
        values["train"] |= {
            "steps": STEPS, "epochs": None, "effective_batch": 8, "micro_batch": 4, "precision": "fp32",
            "validate_every": None, "keep": "last", "log_every": 1, "checkpoint_every": None,
        }  # fmt: skip
    path = folder / f"pico-{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def _student(recipe: Recipe, values: Any) -> dict[str, Any]:
    found = {**values, "tokenizer": "own" if recipe.task == "clm" else "own-masked"}
    if values.get("preset"):
        found = {**found, "preset": None, "architecture": {"model_type": "llama", **SMALL["llama"]}}
    elif values.get("architecture"):
        family = values["architecture"]["model_type"]
        found["architecture"] = {"model_type": family, **SMALL[family]}
    elif values.get("model"):
        distilled = "distilbert" in values["model"]
        found["new_head"] = recipe.task == "classification"
        found["model"] = "distilbert" if distilled else "bert-6" if "MiniLM" in values["model"] else "bert-12"
    return found


def _teacher(recipe: Recipe, values: Any) -> dict[str, Any]:
    name = values["name"]
    few = "minilm" in name or name == "six"
    if recipe.task == "mlm":
        model = "bert-6" if few else "bert-12"
    elif recipe.task == "classification":
        model = "judge-6" if few or name == "larger" else "judge-12"
    else:
        model = "gpt2-own" if name == "gpt2-large" else name
    found = {**values, "model": model, "recipe": None}
    if values.get("adapt"):
        found["adapt"] |= {
            "tokens": "2k", "effective_batch": 8, "micro_batch": 4, "precision": "fp32",
            "validate_every": 4, "fraction": None,
        }  # fmt: skip
    return found


def _data(recipe: Recipe, values: Any) -> dict[str, Any]:
    if recipe.task in ("clm", "mlm"):
        train: dict[str, Any] = {"path": "train.txt"}
        held: dict[str, Any] = {"path": "valid.txt"}
    else:
        text = values["train"][0].get("text")
        columns = ["one", "two"] if isinstance(text, list) and len(text) == 2 else ["one"]
        train, held = ({"path": f"{part}.jsonl", "text": [*columns]} for part in ("train", "valid"))
        values = {**values, "labels": list(LABELS)}
    return {**values, "train": [train], "validation": [held], "fraction": 1.0, "context": 32}
