"""A small world for tests of whole commands: text, tokenizers, models and recipes in one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import Result
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.load import save_model
from tests.support.pico import pico_model

LLAMA = (
    "{model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 1}"
)
GPT2 = "{model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}"
ROBERTA = (
    "{model_type: roberta, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, "
    "num_attention_heads: 2}"
)
TEXT = """
data: {train: train.txt, validation: valid.txt, context: 64}
"""
TRAIN = "train: {steps: 6, effective_batch: 8, learning_rate: 5e-3, validate_every: 3, log_every: 2}\n"
ADAPT = "{tokens: 4k, learning_rate: 3e-3, effective_batch: 8, validate_every: 4}"

RECIPES = {
    "teacher-gpt2": f"""
task: clm
student: {{tokenizer: {{train: bpe, size: 320}}, architecture: {GPT2}}}
{TEXT}
objectives: [{{loss: labels}}]
{TRAIN}
tracking: []
""",
    "teacher-llama": f"""
task: clm
student: {{tokenizer: {{train: bpe, size: 340}}, architecture: {LLAMA}}}
{TEXT}
objectives: [{{loss: labels}}]
{TRAIN}
""",
    "whole": f"""
task: clm
student: {{tokenizer: {{train: bpe, size: 300}}, architecture: {LLAMA}}}
teachers:
  - {{name: g, recipe: teacher-gpt2.yaml, adapt: {ADAPT}}}
  - {{name: l, recipe: teacher-llama.yaml, adapt: {ADAPT}}}
data:
  train: [{{path: train.txt, domain: tales}}, {{sample: train, size: 20k, domain: made}}]
  validation: valid.txt
  fraction: 0.5
  context: 64
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5, temperature: 2}}]
{TRAIN}
eval: [perplexity, {{suite: lm-eval, tasks: [sample_minimal_pairs], limit: 4}}]
controls: [no-teacher, all-data]
seeds: [1, 2]
""",
    "plain": f"""
task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
{TEXT}
objectives: [{{loss: labels}}]
{TRAIN}
tracking: []
""",
    "taught": f"""
task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
teachers: [{{name: a, model: same}}, {{name: b, model: padded}}]
{TEXT}
objectives: [{{loss: labels}}, {{loss: reverse_kl}}]
{TRAIN}
tracking: []
""",
    "masked": f"""
task: mlm
student: {{tokenizer: own-masked, init_from: {{teacher: b, layers: every-other}}}}
teachers:
  - {{name: b, model: bert, adapt: {ADAPT}}}
  - {{name: d, model: distilbert}}
{TEXT}
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5, temperature: 2}}]
{TRAIN}
eval: [{{suite: pseudo-perplexity, tokens: 200}}, masked-loss]
controls: [no-teacher]
seeds: [1, 2]
tracking: []
""",
    "filling": f"""
task: mlm
student: {{tokenizer: own-masked, architecture: {ROBERTA}}}
{TEXT}
objectives: [{{loss: labels}}]
{TRAIN}
tracking: []
""",
    "adapts": f"""
task: clm
student: {{tokenizer: own}}
teachers:
  - {{name: g, model: gpt2, adapt: {ADAPT}}}
  - {{name: q, model: qwen2, adapt: {ADAPT.replace("{", "{init: mean, ")}}}
{TEXT}
eval: [perplexity]
""",
}
"""Recipes by name; each trains for a second at most."""


def build(folder: Path) -> None:
    """Write text, two tokenizers for each task (``own``, ``own-masked``, others), teachers, and recipes."""
    train, valid = (list(sample_documents(split, size=size, seed=0)) for split, size in SIZES.items())
    (folder / "train.txt").write_text("\n".join(train), encoding="utf-8")
    (folder / "valid.txt").write_text("\n".join(valid), encoding="utf-8")
    own, other = (train_tokenizer(train, size=size) for size in (300, 320))
    own.save_pretrained(folder / "own")
    model_folder(folder / "gpt2", "gpt2", other)
    model_folder(folder / "qwen2", "qwen2", other)
    model_folder(folder / "same", "llama", own, seed=1)
    model_folder(folder / "padded", "gpt2", own, rows=320, seed=2)
    masked, unlike = (train_tokenizer(train, size=size, masked=True) for size in (300, 320))
    masked.save_pretrained(folder / "own-masked")
    model_folder(folder / "bert", "bert", unlike, layers=4)
    model_folder(folder / "distilbert", "distilbert", masked)
    model_folder(folder / "roberta", "roberta", masked)
    for name, text in RECIPES.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


SIZES = {"train": 80_000, "validation": 5_000}


def model_folder(
    folder: Path,
    family: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows: int | None = None,
    layers: int = 2,
    seed: int = 0,
) -> None:
    """A random pico model with a tokenizer, saved; ``rows`` of the embedding where there are more."""
    model = pico_model(family, vocabulary=rows or len(tokenizer), layers=layers, seed=seed)
    save_model(model, tokenizer, folder)


def stlm_kd(*words: str) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, list(words))


def done(*words: str) -> Any:
    """What a command prints as JSON; it must end well."""
    result = stlm_kd(*words, "--json")
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return json.loads(result.stdout)


def distilled(recipe: str, *changes: str, output_dir: Path, options: tuple[str, ...] = ()) -> Path:
    """The run folder of a recipe that was distilled."""
    words = ["distill", "-r", f"{recipe}.yaml", *changes, "--output-dir", str(output_dir), *options]
    return Path(done(*words)["folder"])


def started(*words: str) -> subprocess.Popen[str]:
    """The command in a process of its own, and in a session of its own as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "stlm_kd", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def student(run: Path, variant: str = "student", seed: int = 1) -> Path:
    """Where a run has a student."""
    return run / "students" / variant / f"seed-{seed}"


def weights(run: Path, variant: str = "student", seed: int = 1) -> bytes:
    """The bytes of a student's weights."""
    return (student(run, variant, seed) / "model" / "model.safetensors").read_bytes()


def built(output_dir: Path) -> dict[str, int]:
    """All stages with the times of their files' last change, in nanoseconds."""
    files = (
        path for path in (output_dir / "stages").rglob("*") if path.is_file() and ".locks" not in path.parts
    )
    return {str(path.relative_to(output_dir)): path.stat().st_mtime_ns for path in files}
