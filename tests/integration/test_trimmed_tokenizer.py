"""Recipes whose student gets some of a teacher's own tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from stlm_kd.artifacts.stage_store import StageRecord
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.distill import distill
from stlm_kd.pipeline.stages.digests import known_stages
from stlm_kd.pipeline.stages.tokenizer import student_tokenizer
from stlm_kd.recipe import load

DATA = """
data: {train: {sample: train, size: 40k}, validation: {sample: validation, size: 5k}, context: 64}
objectives: [OBJECTIVES]
train: {steps: 2}
"""
TEACHER = """task: clm
student:
  tokenizer: {train: bpe, size: 360}
  architecture: {model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, tie_word_embeddings: false}
""" + DATA.replace("OBJECTIVES", "{loss: labels}")
STUDENT = """task: clm
student:
  tokenizer: {trim: a, size: 300}
  architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2,
    num_attention_heads: 2}
teachers:
  - {name: a, recipe: teacher.yaml, adapt: {tokens: 3k, init: subword-mean, old_rows_learning_rate: 0}}
""" + DATA.replace("OBJECTIVES", "{loss: labels}, {loss: forward_kl}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two recipes."""
    made = tmp_path_factory.mktemp("trimmed")
    (made / "teacher.yaml").write_text(TEACHER)
    (made / "student.yaml").write_text(STUDENT)
    return made


def test_a_run_keeps_the_rows_of_the_teacher(folder: Path) -> None:
    """Exact rows that do not move are, bit for bit, the teacher's."""
    distill(str(folder / "student.yaml"), output_dir=folder / "runs")
    stages, stage = (folder / "runs" / "stages").iterdir(), _adapted(folder / "runs")
    kinds = {path: record.kind for path in stages if (record := StageRecord.of(path)) is not None}
    trained = [path / "model" for path, kind in kinds.items() if kind == "model"]
    (teacher,) = (model for model in trained if len(load_tokenizer(str(model))) == 360)
    own, ids = (load_tokenizer(str(path)).get_vocab() for path in (teacher, stage / "model"))
    assert len(ids) == 300
    old = torch.tensor([own[token] for token in sorted(ids, key=ids.__getitem__)])
    before, after = (load_file(path / "model.safetensors") for path in (teacher, stage / "model"))
    for name in ("transformer.wte.weight", "lm_head.weight"):
        assert torch.equal(after[name], before[name][old])
    assert json.loads((stage / "report.json").read_text())["init"] == "all copied"


def test_a_trimmed_tokenizer_is_a_stage_of_the_teachers_content(folder: Path) -> None:
    context = RunContext(folder / "other")
    made = [
        student_tokenizer(load(str(folder / "student.yaml"), changes), context)
        for changes in ([], ["train.steps=3"], ["teachers.0.recipe.student.tokenizer.size=350"])
    ]
    stages = (folder / "other" / "stages").iterdir()
    kinds = [record.kind for path in stages if (record := StageRecord.of(path)) is not None]
    assert kinds == ["tokenizer"] * 4  # two of teachers, two trimmed ones
    assert made[0].get_vocab() == made[1].get_vocab()
    assert known_stages(load(str(folder / "student.yaml"))) == {}  # the teacher's tokenizer is not made yet


def test_a_size_above_the_teachers_is_refused_by_the_recipes_key(folder: Path) -> None:
    recipe = load(str(folder / "student.yaml"), ["student.tokenizer.size=361"])
    with pytest.raises(
        ModelError, match=r"^student\.tokenizer\.size: 361 found; expected at most 360.* of teacher a$"
    ):
        student_tokenizer(recipe, RunContext(folder / "other"))


def test_one_teacher_serves_students_of_several_sizes_without_training(folder: Path) -> None:
    """A smaller vocabulary's logits are, bit for bit, the whole one's at the same tokens."""
    untrained = ["teachers.0.adapt.old_rows_learning_rate=null", "teachers.0.adapt.tokens=0"]
    distill(str(folder / "student.yaml"), untrained, output_dir=folder / "larger")
    larger = _adapted(folder / "larger")
    taken = f"teachers.0={{name: a, model: {larger / 'model'}, adapt: {{tokens: 0}}}}"
    distill(
        str(folder / "student.yaml"), [taken, "student.tokenizer.size=290"], output_dir=folder / "smaller"
    )
    smaller = _adapted(folder / "smaller")
    small, large = (load_tokenizer(str(stage / "model")) for stage in (smaller, larger))
    ids = torch.arange(290)
    places = torch.tensor(large.convert_tokens_to_ids(small.convert_ids_to_tokens(ids.tolist())))
    assert len(small) == 290 < len(large) == 300
    with torch.no_grad():
        few, many = (GPT2LMHeadModel.from_pretrained(stage / "model").eval() for stage in (smaller, larger))
        assert torch.equal(few(ids[None, :60]).logits, many(places[None, :60]).logits[..., places])
    for stage in (larger, smaller):
        report = json.loads((stage / "report.json").read_text())
        assert (report["steps"], report["flops"], report["trained"]) == (0, 0, report["initialised"])


def _adapted(output_dir: Path) -> Path:
    """The stage of the one adapted teacher."""
    stages = (output_dir / "stages").iterdir()
    (found,) = (
        path for path in stages if (one := StageRecord.of(path)) is not None and one.kind == "adapted"
    )
    return found
