"""Models that packed rows and a chunked head would misread are refused through the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models.capabilities import check_forward
from stlm_kd.models.load import save_model
from tests.support.pico import pico_model
from tests.support.road import ADAPT, stlm_kd

SIZES = (
    "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2, "
    "initializer_range: 0.2"
)


@pytest.fixture(scope="module")
def gemma2(road: Path) -> Path:
    """A teacher whose logits are capped after the head, under the students' tokenizer."""
    own = load_tokenizer(str(road / "own"))
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gemma2"](
        vocab_size=len(own), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, initializer_range=0.5,
        final_logit_softcapping=1.0, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    save_model(AutoModelForCausalLM.from_config(config), own, road / "gemma2")
    return road / "gemma2"


@pytest.mark.filterwarnings("ignore:If you want to use")
def test_a_causal_student_that_looks_both_ways_is_refused_before_anything_is_trained(
    place: Path, tmp_path: Path
) -> None:
    change = f"student={{tokenizer: own, architecture: {{model_type: bert, {SIZES}}}}}"
    result = stlm_kd("distill", "-r", "plain.yaml", change, "--output-dir", str(tmp_path))
    assert result.exit_code == 3, result.output
    assert "bert is for task mlm, but the task is clm" in result.stderr
    assert not list(tmp_path.rglob("checkpoints"))


def test_a_model_without_a_linear_head_is_refused() -> None:
    model = pico_model("llama", tied=False)
    model.set_output_embeddings(nn.Sequential(nn.Linear(16, 61)))
    with pytest.raises(ModelError, match="no embedding of tokens with a linear head"):
        check_forward(model, context=16, name="student")


@pytest.mark.parametrize("adapt", ["", f", adapt: {ADAPT}"])
def test_a_teacher_that_caps_its_logits_is_refused(
    gemma2: Path, place: Path, tmp_path: Path, adapt: str
) -> None:
    teachers = f"teachers=[{{name: c, model: {gemma2}{adapt}}}]"
    result = stlm_kd("distill", "-r", "taught.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 3, result.output
    said = f"teachers[0] (c): {gemma2}: this gemma2 model's logits are not its head applied"
    assert said in result.stderr
    assert not list(tmp_path.rglob("checkpoints"))
