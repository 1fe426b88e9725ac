"""FLOPs of a recipe's step, to the digit what a counter sees of the real one; memory by stage, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PreTrainedModel

from stlm_kd.distillation.step import DistillationStep
from stlm_kd.estimate.counting import flops_of
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.simulation.stand_ins import batch_of
from stlm_kd.recipe import Recipe, from_values
from stlm_kd.teachers.live import LiveTeacher
from tests.support.pico import pico_model

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
KL = {"loss": "forward_kl", "weight": 0.5, "temperature": 2.0}


def recipe(tmp_path: Path, *, objectives: list[dict[str, Any]], **changes: Any) -> Recipe:
    pico_model("gpt2", layers=3, vocabulary=300).config.save_pretrained(tmp_path / "a")  # no weights
    pico_model("llama", layers=3, vocabulary=300).save_pretrained(tmp_path / "b")
    teachers = [{"name": name, "model": str(tmp_path / name)} for name in ("a", "b")]
    given = {
        "task": "clm",
        "student": {"tokenizer": {"train": "bpe", "size": 300}, "architecture": LLAMA},
        "teachers": teachers,
        "data": {"train": {"sample": "train", "size": 1000}, "context": 16},
        "objectives": objectives,
        "train": {"steps": 3, "effective_batch": 4, "micro_batch": 2},
    }
    return from_values({**given, **changes}, origin="test")


def real(model: PreTrainedModel) -> PreTrainedModel:
    made = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager")
    assert isinstance(made, PreTrainedModel)
    return made


@pytest.mark.parametrize("objectives", [[{"loss": "labels"}], [{"loss": "labels"}, KL]], ids=["alone", "kl"])
def test_flops_are_those_of_a_counter_to_the_digit(tmp_path: Path, objectives: list[dict[str, Any]]) -> None:
    skeleton = Skeleton.of(recipe(tmp_path, objectives=objectives))
    found = flops_of(skeleton, 3)
    empty = skeleton.step()
    teachers = {
        name: LiveTeacher(real(skeleton.teachers[name]), skeleton.vocabulary) for name in empty.teachers
    }
    step = DistillationStep(
        real(skeleton.student), empty.all_terms, teachers=teachers, vocabulary_loss="dense"
    )
    batch = batch_of(skeleton.recipe, skeleton.vocabulary, 4, pairs=False)
    with FlopCounterMode(display=False) as seen:
        step(batch).loss.backward()
    unlabelled = 4 / 64  # the last position of a row has no label; the estimate projects it too
    heads = sum(number for part, number in found.items() if part.endswith("head"))
    assert round(sum(found.values()) - unlabelled * heads) == seen.get_total_flops()
    assert ("teacher a" in found) == (len(objectives) > 1)
