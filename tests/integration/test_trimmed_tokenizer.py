"""Recipes whose student gets some of a teacher's own tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.artifacts.stage_store import StageRecord
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.estimate.estimate import estimate_recipe
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.checks.vocabularies import another_vocabulary, lacking_tokens, note_lacking_tokens
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.distill import distill
from stlm_kd.pipeline.stages.adaptation import adapt_model
from stlm_kd.pipeline.stages.digests import known_stages
from stlm_kd.pipeline.stages.tokenizer import setup_of, student_tokenizer
from stlm_kd.recipe import load
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.schema.student import Adapt
from tests.support.pico import pico_model

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
    with pytest.raises(ModelError, match=r"^student\.tokenizer\.size: 361 found; expected at most 360"):
        estimate_recipe(recipe)  # reads no text


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


def test_a_named_tokenizer_of_the_teachers_tokens_is_copied_without_asking(tmp_path: Path) -> None:
    """By each ``init`` that copies; the fault without ``adapt`` names the cure of this teacher."""
    texts = [*sample_documents("train", size=40_000)]
    made = {size: train_tokenizer(texts, size=size) for size in (280, 300)}
    save_model(pico_model("gpt2", vocabulary=300), made[300], tmp_path / "teacher")
    made[280].save_pretrained(tmp_path / "small")
    text = STUDENT.replace("{trim: a, size: 300}", str(tmp_path / "small"))
    teacher = f"teachers=[{{name: a, model: {tmp_path / 'teacher'}, adapt: {{tokens: 0, init: overlap}}}}]"
    (tmp_path / "student.yaml").write_text(text)
    recipe = load(str(tmp_path / "student.yaml"), [teacher])
    adapt = recipe.teachers[0].adapt
    assert adapt is not None
    setup = setup_of(recipe, RunContext(tmp_path / "runs"))
    adapt_model(setup, adapt, str(tmp_path / "teacher"), name="a", folder=tmp_path / "adapted")
    report = json.loads((tmp_path / "adapted/report.json").read_text())
    assert report["init"] == "all copied" and report["tokens_by_origin"]["pieces"] == 0
    assert "add adapt: {tokens: 0}, which trains nothing" in another_vocabulary(
        made[300], made[280], task="mlm"
    )
    lacking = [token for token in made[300].get_vocab() if token not in made[280].get_vocab()]
    assert sorted(lacking_tokens(made[280], made[300])) == sorted(lacking)
    fault = another_vocabulary(made[280], made[300], task="clm")
    assert "and 17 more), or translate: true, which keeps its vocabulary, or give" in fault


def test_a_slice_that_lacks_tokens_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    texts = [*sample_documents("train", size=40_000)]
    less, more = (train_tokenizer(texts, size=size) for size in (281, 301))
    for own, student, tokens in ((less, more, 1000), (more, less, 0), (less, more, 0)):
        assert not caplog.messages
        note_lacking_tokens("teachers[0]", Adapt(tokens=tokens), own, student)
    (message,) = caplog.messages
    assert message.startswith("teachers[0].adapt.tokens: 0 trains nothing, but the teacher lacks 20 of")


def test_a_masked_student_needs_a_mask_token_of_the_trimmed_teacher(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([*sample_documents("train", size=20_000)], size=320)
    save_model(pico_model("bert", vocabulary=320), tokenizer, tmp_path / "teacher")
    teacher = f"{{name: a, model: {tmp_path / 'teacher'}, adapt: {{tokens: 0}}}}"
    body = STUDENT.split("\n  - {name: a")[0].replace("task: clm", "task: mlm").replace("llama", "bert")
    data = DATA.replace("OBJECTIVES", "{loss: labels}")
    (tmp_path / "student.yaml").write_text(f"{body} [{teacher}]{data}")
    with pytest.raises(ModelError, match=r"^student\.tokenizer\.trim: .* teacher a has no mask token"):
        student_tokenizer(load(str(tmp_path / "student.yaml")), RunContext(tmp_path / "runs"))


def test_a_folder_sliced_by_hand_teaches_the_same(folder: Path) -> None:
    """Rows taken from the state dict, in a model of the smaller size, without an adaptation."""
    untrained = ["teachers.0.adapt.old_rows_learning_rate=null", "teachers.0.adapt.tokens=0"]
    described = describe(load(str(folder / "student.yaml"), untrained))
    assert "teacher a: sliced to the student's tokens, all rows exact and none trained" in described
    run = distill(str(folder / "student.yaml"), untrained, output_dir=folder / "larger")
    (whole,) = (path for path in _models(folder / "larger") if len(load_tokenizer(str(path))) == 360)
    kept = load_tokenizer(str(_adapted(folder / "larger") / "model"))
    teacher = GPT2LMHeadModel.from_pretrained(whole)
    places = _places(kept, load_tokenizer(str(whole)))
    state = teacher.state_dict()
    state |= {name: state[name][places] for name in ("transformer.wte.weight", "lm_head.weight")}
    teacher.config.vocab_size = len(kept)
    by_hand = GPT2LMHeadModel(teacher.config)
    by_hand.load_state_dict(state)
    for one in (by_hand, kept):
        one.save_pretrained(folder / "by-hand")
    changed = [
        f"teachers.0={{name: a, model: {folder / 'by-hand'}}}",
        f"student.tokenizer={folder / 'by-hand'}",
    ]
    again = distill(str(folder / "student.yaml"), changed, output_dir=folder / "by-hand-runs")
    first, second = (load_file(one.models[0] / "model.safetensors") for one in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


BERT = {
    "model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize("task", [pytest.param("mlm", marks=pytest.mark.long), "classification"])
def test_masked_models_and_classifiers_are_sliced(task: str, tmp_path: Path) -> None:
    """The outputs on the kept tokens; a masked model's probabilities are those of these, renormalised."""
    texts = [*sample_documents("train", size=20_000)][:40]
    own = tmp_path / "tokenizer"
    train_tokenizer(texts, size=360, masked=True).save_pretrained(own)
    rows = [{"sentence": text[:80], "label": ("no", "yes")[n % 2]} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "rows.txt").write_text("\n".join(texts))
    file = str(tmp_path / ("rows.txt" if task == "mlm" else "rows.jsonl"))
    data: dict[str, object] = {"train": file, "validation": file, "context": 64, "allow_overlap": True}
    common = {"task": task, "data": data, "train": {"steps": 1}}
    if task == "classification":
        data["labels"] = ["no", "yes"]
    teacher = common | {
        "student": {"tokenizer": str(own), "architecture": BERT},
        "objectives": [{"loss": "labels"}],
    }
    student = common | {
        "student": {"tokenizer": {"trim": "a", "size": 300}, "architecture": BERT},
        "teachers": [{"name": "a", "recipe": "teacher.yaml", "adapt": {"tokens": 0}}],
        "objectives": [{"loss": "forward_kl"}],
    }
    for name, recipe in (("teacher", teacher), ("student", student)):
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
    distill(str(tmp_path / "student.yaml"), output_dir=tmp_path / "runs")
    sliced = _adapted(tmp_path / "runs") / "model"
    (whole,) = (path for path in _models(tmp_path / "runs") if len(load_tokenizer(str(path))) == 360)
    kind: type[PreTrainedModel] = BertForMaskedLM if task == "mlm" else BertForSequenceClassification
    places = _places(*(load_tokenizer(str(path)) for path in (sliced, whole)))
    ids = torch.arange(60)[None]
    with torch.no_grad():
        few, many = (kind.from_pretrained(path).eval() for path in (sliced, whole))
        found, expected = few(ids).logits, many(places[ids]).logits
    if task == "classification":
        assert torch.equal(found, expected)
        return
    assert torch.equal(found, expected[..., places])
    probabilities = expected.softmax(-1)[..., places]
    assert torch.allclose(found.softmax(-1), probabilities / probabilities.sum(-1, keepdim=True), atol=1e-7)


def _places(kept: PreTrainedTokenizerFast, whole: PreTrainedTokenizerFast) -> torch.Tensor:
    """The ids of all of a tokenizer's tokens in another one."""
    return torch.tensor(whole.convert_tokens_to_ids(kept.convert_ids_to_tokens([*range(len(kept))])))


def _models(output_dir: Path) -> list[Path]:
    """The trained models, of teachers and students."""
    records = {path: StageRecord.of(path) for path in (output_dir / "stages").iterdir()}
    return [path / "model" for path, one in records.items() if one is not None and one.kind == "model"]


def _adapted(output_dir: Path) -> Path:
    """The stage of the one adapted teacher."""
    stages = (output_dir / "stages").iterdir()
    (found,) = (
        path for path in stages if (one := StageRecord.of(path)) is not None and one.kind == "adapted"
    )
    return found
