"""What interventions do, measured in a step: on whole runs with hooks, in parts, and at no cost otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from stlm_kd.data.labelled.batches import AnyBatch, ExampleBatch
from stlm_kd.distillation import metrics
from stlm_kd.distillation.objective import term_mask
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan
from stlm_kd.interventions.plan import OwnStates
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.forward import inputs_of
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput
from tests.support.interchange_case import base_batch, supplies
from tests.support.pico import MASKED, part, pico_model
from tests.support.six_passes import exchanged, whole_run

OUTCOMES = 61
LAYERS = {"t": {0: (0, 1), 1: (2,)}, "u": {0: (0,), 1: (1,)}}
WEIGHTS = {"t": 0.25, "u": 0.75}


def classifier(layers: int, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=OUTCOMES, hidden_size=16, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_labels=3, initializer_range=0.4, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def examples() -> ExampleBatch:
    """Rows of text, the last one padding."""
    text = base_batch("padded", masked=False)
    ids = torch.tensor([4, 5, -1])
    return ExampleBatch(text.input_ids, text.attention_mask, None, torch.tensor([0, 2, -100]), ids)


def step_of(
    kind: str, *, source: str = "other-example", on: str = "attended", more: int = 0
) -> tuple[DistillationStep, AnyBatch]:
    """A student of two layers beside teachers of four and two; its head has more rows than the vocabulary."""
    intervention = Intervention("diito", LAYERS, source=source, positions="random", fraction=0.6)
    if kind == "classifier":
        student, *teachers = (classifier(layers, seed) for seed, layers in enumerate((2, 4, 2)))
    else:
        student = pico_model(kind, vocabulary=OUTCOMES + more, seed=1)
        teachers = [pico_model(kind, layers=layers, seed=5 + layers) for layers in (4, 2)]
    options = {"temperature": 2.0}
    term = Term(
        "diito", "forward_kl", on=on, teacher=COMBINED, options=options, intervention=intervention  # type: ignore[arg-type]
    )  # fmt: skip
    vocabulary = None if kind == "classifier" else OUTCOMES
    live = {
        name: LiveTeacher(model.double(), vocabulary, name=name)
        for name, model in zip(LAYERS, teachers, strict=True)
    }
    step = DistillationStep(
        student.double(),
        [term],
        teachers=live,
        combination=Combination("weighted", {"weights": WEIGHTS}),
        supplies=supplies(),
    )
    batch = examples() if kind == "classifier" else base_batch("packed", masked=kind in MASKED)
    step.train().begin(3, 10, is_logged=True)
    return step, batch


def runs(
    model: PreTrainedModel, batch: AnyBatch, plan: Plan, layers: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Log-probabilities without the intervention and after it."""
    inputs = inputs_of(batch, model)
    base = whole_run(model, inputs)
    assert isinstance(plan.source, OwnStates)
    overwrite = {layer: exchanged(plan, plan.source, base.gave[layer]) for layer in layers}
    after = whole_run(model, inputs, overwrite)
    return tuple(run.logits[..., :OUTCOMES].log_softmax(-1) for run in (base, after))  # type: ignore[return-value]


def kl(after: Tensor, before: Tensor) -> float:
    return float(functional.kl_div(before, after, reduction="batchmean", log_target=True))


@pytest.mark.parametrize(
    ("kind", "on", "more"), [("llama", "attended", 3), ("bert", "labels", 0), ("classifier", "attended", 0)]
)
def test_the_measures_are_those_of_whole_runs_with_hooks(
    kind: str, on: str, more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "chunk_rows", lambda *_: 3)
    step, batch = step_of(kind, on=on, more=more)
    plan = step.drawn(batch)["diito"]
    mask = term_mask(step.terms[0], batch) & plan.touched
    with torch.no_grad():
        own = runs(step.student, batch, plan, (plan.student_layer,))
        said = {
            name: runs(teacher.model, batch, plan, plan.teacher_layers[name])  # type: ignore[attr-defined]
            for name, teacher in step.teachers.items()
        }
    theirs = [sum(WEIGHTS[name] * one[moment].exp() for name, one in said.items()).log() for moment in (0, 1)]  # type: ignore[union-attr]
    student, teacher = [run[mask] for run in own], [run[mask] for run in theirs]
    same = student[1].argmax(-1) == teacher[1].argmax(-1)
    changed = teacher[0].argmax(-1) != teacher[1].argmax(-1)
    expected = {
        "agreement": float(same.double().mean()),
        "interchange_accuracy": float(same[changed].double().mean()),
        "teacher_effect": kl(teacher[1], teacher[0]),
        "student_effect": kl(student[1], student[0]),
    }
    counts = {name: float(count) for name, count in step.count(batch).items()}
    measures = step(batch, counts).measures
    of_layers = [f"diito.{name}/layer{plan.student_layer}" for name in expected]
    assert list(measures) == step.measures
    assert [name for name in measures if name.startswith("diito.")] == of_layers
    assert bool(changed.any()) and expected["student_effect"] > 1e-3
    found = {name: float(measures[name].total / measures[name].number) for name in of_layers}
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=1e-6)


def test_what_parts_of_a_batch_measure_adds_up_to_what_the_whole_does() -> None:
    step, batch = step_of("llama", source="mixup")
    whole, first, second = (
        step(few, dict(step.count(few))).measures
        for few in (batch, part(batch, slice(0, 2)), part(batch, slice(2, 3)))
    )
    for name, measure in whole.items():
        for moment in (0, 1):
            assert float(first[name][moment] + second[name][moment]) == pytest.approx(float(measure[moment]))


@pytest.mark.parametrize("kind", ["bert", "classifier"])
def test_measuring_asks_more_of_the_teachers_and_changes_neither_loss_nor_gradient(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[OutputSpec] = []
    answer = LiveTeacher.__call__

    def asking(self: LiveTeacher, batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        asked.append(replace(needs, sites=frozenset()))
        return answer(self, batch, needs)

    monkeypatch.setattr(LiveTeacher, "__call__", asking)
    step, batch = step_of(kind)
    outputs, slopes = [], []
    for is_logged in (False, True):
        step.begin(3, 10, is_logged=is_logged)
        step.zero_grad()
        outputs.append(step(batch, dict(step.count(batch))))
        outputs[-1].loss.backward()
        slopes.append([weight.grad for weight in step.parameters() if weight.grad is not None])
    assert outputs[0].measures == {} != outputs[1].measures
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))
    outcomes = [needs.head_input or needs.logits for needs in asked]
    assert outcomes == [False, False, True, True]


def test_exchanged_tokens_belong_to_no_layer_and_evaluation_measures_nothing() -> None:
    step, batch = step_of("llama", source="input-tokens")
    of_tokens = [name for name in step.measures if name.startswith("diito.")]
    assert {name.partition("/")[2] for name in of_tokens} == {"tokens"}
    assert step(batch, dict(step.count(batch))).measures.keys() == set(step.measures)
    step.eval()
    assert step.measures == [] and step(batch, dict(step.count(batch))).measures == {}
