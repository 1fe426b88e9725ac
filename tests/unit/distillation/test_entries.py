"""Steps for those who write their own loop: mappings as objectives, a tokenizer's output as batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, Gemma2Config, Gemma2ForCausalLM

import stlm_kd
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import CheckpointError, ModelError, RecipeError, UsageError
from stlm_kd.schedules import Ramp
from tests.support.pico import pico_model

IDS = torch.randint(3, 61, (4, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0
MASK[2, :4] = 0
PADDED = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.masked_fill(MASK == 0, -100)}
POSITIONS = (MASK.cumsum(1) - 1).clamp(min=0)
"""Four texts, one padded on the right and one on the left."""


def step_of(
    objective: list[Any], *, family: str = "llama", teachers: tuple[str, ...] = ("a",)
) -> stlm_kd.DistillationStep:
    models = {name: pico_model("gpt2", width=24, layers=4, seed=i + 1) for i, name in enumerate(teachers)}
    live = {name: stlm_kd.LiveTeacher(model) for name, model in models.items()}
    return stlm_kd.DistillationStep(pico_model(family), objective, teachers=live)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_loss_on_labels_is_transformers_own(family: str) -> None:
    step = step_of([{"loss": "labels"}], family=family)
    first = MASK.cumsum(1) == 1  # transformers predicts the first token from padding on the left
    labels = PADDED["labels"].masked_fill(first, -100)
    expected = step.student(**{**PADDED, "labels": labels}, position_ids=POSITIONS).loss
    output = step(PADDED)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert step.count(PADDED)["labels"] == int(MASK.sum()) - 4


def test_a_masked_model_is_not_shifted() -> None:
    step = step_of([{"loss": "labels"}], family="bert", teachers=())
    expected = step.student(**PADDED, position_ids=POSITIONS).loss
    torch.testing.assert_close(step(PADDED).loss, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ModelError, match="this bert student needs labels"):
        step({"input_ids": IDS})


def test_a_classifier_has_a_label_per_row() -> None:
    config = BertConfig(
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        hidden_dropout_prob=0, attention_probs_dropout_prob=0, num_labels=3,
    )  # fmt: skip
    student, teacher = (BertForSequenceClassification(config).eval() for _ in range(2))
    given = {**PADDED, "labels": torch.tensor([0, 2, 1, 1])}
    objective = [{"loss": "labels"}, {"loss": "forward_kl", "temperature": 2.0}]
    step = stlm_kd.DistillationStep(student, objective, teachers={"a": stlm_kd.LiveTeacher(teacher)})
    output = step(given)
    own, other = (
        (model(input_ids=IDS, attention_mask=MASK).logits / 2).log_softmax(-1) for model in (student, teacher)
    )
    divergence = 4 * functional.kl_div(own, other, log_target=True, reduction="batchmean")
    torch.testing.assert_close(output.loss, student(**given).loss + divergence, rtol=1e-5, atol=1e-6)


def test_mappings_are_the_terms_that_they_name() -> None:
    ramp = Ramp("linear", 1.0, 0.0)
    mappings = [{"loss": "labels", "weight": 0.5}, {"loss": "forward_kl", "weight": ramp, "temperature": 2}]
    terms = [
        Term("labels", "labels", 0.5),
        Term(
            "forward_kl",
            "forward_kl",
            ramp,
            teacher="combined",
            options={"temperature": 2.0, "temperature_scaling": "t2"},
        ),
    ]
    one, other = (step_of(objective, teachers=("a", "b")) for objective in (mappings, terms))
    assert torch.equal(one(PADDED).loss, other(PADDED).loss)
    assert one.all_terms == other.all_terms


def real(values: Tensor) -> Tensor:
    return values[MASK.bool()]


def test_hidden_states_are_projected_and_compared_at_all_attended_tokens() -> None:
    step = step_of([{"loss": "hint", "sites": {0: 1}}])
    (projection,) = step.projections.of("hint@a").values()
    given = {"input_ids": IDS, "attention_mask": MASK, "position_ids": POSITIONS}
    student, teacher = (
        real(model(**given, output_hidden_states=True).hidden_states[layer])
        for model, layer in ((step.student, 1), (step.teachers["a"].model, 2))  # type: ignore[attr-defined]
    )
    expected = (projection(student) - teacher).square().mean()
    torch.testing.assert_close(step(PADDED).loss, expected, rtol=1e-5, atol=1e-6)


def test_attention_maps_are_compared() -> None:
    step = step_of([{"loss": "attention_mse", "sites": "full"}])
    step(PADDED).loss.backward()
    assert float(step.student.model.layers[0].self_attn.q_proj.weight.grad.abs().max()) > 0


def test_all_faults_are_told_at_once() -> None:
    objective = [
        {"loss": "forwards_kl"},
        {"loss": "forward_kl", "temprature": 2.0},
        {"loss": "forward_kl", "temperature": 0.0, "teacher": "c", "weight": -1},
        {"loss": "hint"},
        {"loss": "diito"},
        {"loss": "hint", "teacher": "a", "on": "all", "projection": "some"},
    ]
    with pytest.raises(RecipeError) as refused:
        step_of(objective, teachers=("a", "b"))
    lines = str(refused.value).splitlines()
    assert lines[0] == "objective: 8 faults"
    assert "objective[0].loss: forwards_kl is not a loss without intervention" in lines[1]
    assert lines[2].endswith("temprature: not a key of forward_kl (did you mean temperature?)")
    assert any(
        "objective[2].temperature: 0.0 found; Input should be greater than 0" in line for line in lines
    )
    assert sorted(line.split(":")[0].strip() for line in lines[3:]) == [
        "objective[2].temperature", "objective[2].weight", "objective[3].teacher", "objective[4].loss",
        "objective[5].on", "objective[5].projection",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match=r"objective\[0\].teacher: c is not a teacher; known: a, b"):
        step_of([{"loss": "forward_kl", "teacher": "c"}], teachers=("a", "b"))
    with pytest.raises(RecipeError, match="forward_kl needs a teacher; pass teachers="):
        step_of([{"loss": "forward_kl"}], teachers=())


def test_a_model_that_cannot_be_run_up_to_its_head_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match="the student: this gemma2 model's logits are not its head"):
        stlm_kd.DistillationStep(Gemma2ForCausalLM(config), [{"loss": "labels"}])


def test_teachers_of_another_vocabulary_are_refused() -> None:
    teacher = stlm_kd.LiveTeacher(pico_model("gpt2", vocabulary=70))
    objective = [{"loss": "forward_kl"}]
    with pytest.raises(ModelError, match=r"a: 70 tokens found; expected the student's 61"):
        stlm_kd.DistillationStep(pico_model(), objective, teachers={"a": teacher})
    padded = stlm_kd.LiveTeacher(pico_model("gpt2", vocabulary=70), vocabulary=61)
    stlm_kd.DistillationStep(pico_model(), objective, teachers={"a": padded})


CONFIG = stlm_kd.TrainingConfig(
    steps=8, learning_rate=1e-2, keep="best", validate_every=2, checkpoint_every=4
)


def test_a_training_lowers_the_loss_and_resumes(tmp_path: Path) -> None:
    batches = [{name: value[rows] for name, value in PADDED.items()} for rows in (slice(0, 2), slice(2, 4))]
    objective = [{"loss": "labels"}, {"loss": "forward_kl"}, {"loss": "hint"}]
    step = step_of(objective)
    result = stlm_kd.train(step, batches, CONFIG, folder=tmp_path, validation=[PADDED])
    losses = [one.losses["labels"] for one in result.validation_history]
    assert losses[-1] < losses[0] and result.steps == 8 and (tmp_path / "metrics.jsonl").is_file()
    again = step_of(objective)
    assert stlm_kd.train(again, batches, CONFIG, folder=tmp_path, validation=[PADDED]).steps == 8
    for name, weight in step.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    with pytest.raises(CheckpointError):
        stlm_kd.train(step_of(objective[:2]), batches, CONFIG, folder=tmp_path, validation=[PADDED])


@pytest.mark.parametrize(
    ("batches", "config", "message"),
    [
        ([], CONFIG, "batches: none given"),
        ([PADDED], stlm_kd.TrainingConfig(), "config: neither steps nor epochs"),
        ([PADDED], CONFIG, "validation: none given"),
    ],
)
def test_a_training_without_its_needs_is_refused(
    batches: list[Any], config: stlm_kd.TrainingConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        stlm_kd.train(step_of([{"loss": "labels"}], teachers=()), batches, config, folder=tmp_path)
