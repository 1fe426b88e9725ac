"""The estimated memory of two processes, against what real trainings take, under each engine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.estimate.estimate import estimate_recipe
from stlm_kd.models.load import save_model
from tests.support.paths import ROOT
from tests.support.run_memory import peaks

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

SIZES = {"small": ((32, 2), (32, 2)), "large": ((512, 8), (640, 12))}
"""Width and layers of student and teacher. What libraries and the rest of the program take is the same."""
RECIPE = """
task: clm
student:
  tokenizer: tokenizer
  architecture:
    {{model_type: llama, hidden_size: {width}, intermediate_size: {inner}, num_hidden_layers: {layers},
      num_attention_heads: 4, num_key_value_heads: 4, tie_word_embeddings: true}}
teachers: [{{name: teacher, model: teacher-{size}, placement: shard, precision: fp32}}]
data:
  train: {{sample: train, size: 300k}}
  validation: {{sample: validation, size: 10k}}
  context: 64
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5}}]
train: {{steps: 5, effective_batch: 16, micro_batch: 4, validate_every: 5, checkpoint_every: 100}}
seeds: [1]
eval: []
controls: []
"""
BF16 = ["engine.deepspeed.weights=bf16", "train.precision=bf16"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("memory")
    tokenizer = train_tokenizer(sample_documents("train", size=300_000, seed=0), size=1500)
    tokenizer.save_pretrained(place / "tokenizer")
    for size, (student, teacher) in SIZES.items():
        width, layers = teacher
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=4 * width,
            num_hidden_layers=layers, num_attention_heads=4, tie_word_embeddings=True,
        )  # fmt: skip
        save_model(LlamaForCausalLM(config), tokenizer, place / f"teacher-{size}")
        width, layers = student
        recipe = RECIPE.format(size=size, width=width, inner=4 * width, layers=layers)
        (place / f"{size}.yaml").write_text(recipe)
    return place


@pytest.mark.parametrize(
    ("zero", "more"), [(0, []), (1, []), (2, []), (3, []), (2, BF16), (3, BF16)],
    ids=["ddp", "zero-1", "zero-2", "zero-3", "zero-2-bf16", "zero-3-bf16"],
)  # fmt: skip
def test_it_is_within_15_percent(
    folder: Path, monkeypatch: pytest.MonkeyPatch, zero: int, more: list[str]
) -> None:
    """Of the process that saves nothing: the other one also gathers the student, in the host's memory."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    changes = [f"engine.deepspeed.zero={zero}", *more] if zero else more
    measured, estimated = [], []
    for size in SIZES:
        command = [sys.executable, "-m", "stlm_kd", "distill", "-r", f"{size}.yaml", *changes]
        name = f"{size}-{zero}-{len(more)}"
        measured.append(peaks([*command, "--processes", "2", "--output-dir", name], folder)["1"])
        found = estimate_recipe(f"{size}.yaml", changes, gpus=[2])
        estimated += [
            one.peak for one in found.memory if (one.zero, one.gpus, one.placement) == (zero, 2, "shard")
        ]
    ratio = (estimated[1] - estimated[0]) / (measured[1] - measured[0])
    assert 0.85 <= ratio <= 1.15, (estimated, measured)
