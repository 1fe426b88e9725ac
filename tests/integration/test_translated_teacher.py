"""Students of a teacher that keeps its vocabulary, live and from a cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import RecipeError
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.cache import verify_cache
from stlm_kd.pipeline.distill import distill
from stlm_kd.recipe import load
from stlm_kd.recipe.describe import describe
from tests.support.pico import pico_model
from tests.support.vocab_pico import sentencepiece_bpe

RECIPE = """task: clm
student:
  tokenizer: {trim: a, size: 300}
  architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
    num_attention_heads: 2}
teachers: [{name: a, model: MODEL, translate: true}]
data: {train: {sample: train, size: 5k}, validation: {sample: validation, size: 2k}, context: 64}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 2, effective_batch: 4, learning_rate: 1e-2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 360 tokens, and the recipe of a student with 300 of them."""
    made = tmp_path_factory.mktemp("translated")
    tokenizer = train_tokenizer(sample_documents("train", size=20_000), "bpe", 360)
    save_model(pico_model("gpt2", vocabulary=len(tokenizer)), tokenizer, made / "teacher")
    (made / "recipe.yaml").write_text(RECIPE.replace("MODEL", str(made / "teacher")))
    return made


def trained(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The student's weights."""
    run = distill(str(folder / "recipe.yaml"), overrides, output_dir=folder / "runs", rehearsal=False)
    return load_file(run.path / "students/student/seed-1/model/model.safetensors")


def test_a_student_of_a_whole_cache_is_that_of_the_live_teacher(folder: Path) -> None:
    live = trained(folder)
    cached = trained(folder, "teachers[0].cache={top: 300}")
    for name, weight in live.items():
        torch.testing.assert_close(cached[name], weight, rtol=1e-3, atol=2e-3)
    (cache,) = (folder / "runs" / "stages").glob("cache-*")
    found = verify_cache(cache, output_dir=folder / "runs")
    assert found is not None and found.agrees


def test_a_vocabulary_that_cannot_be_translated_is_refused_before_anything_is_made(folder: Path) -> None:
    save_model(pico_model(vocabulary=300), sentencepiece_bpe(), folder / "sentencepiece")
    with pytest.raises(RecipeError, match=r"teachers\[0\] \(a\)\.translate: its vocabulary is SentencePiece"):
        distill(
            str(folder / "recipe.yaml"),
            [f"teachers[0].model={folder / 'sentencepiece'}", "student.tokenizer={train: bpe, size: 300}"],
            output_dir=folder / "refused",
        )
    assert not [*(folder / "refused").glob("*/students")]


def test_the_plan_says_that_a_teacher_is_translated(folder: Path) -> None:
    recipe = load(str(folder / "recipe.yaml"))
    assert "teacher a: reads its own tokens; its distributions are translated to the student's" in describe(
        recipe
    )
