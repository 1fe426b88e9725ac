"""What must hold of any interchange intervention: identities, copies, splits, classifiers."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from stlm_kd.data.labelled.batches import ExampleBatch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions import Plan, Positions
from stlm_kd.interventions.plan import OtherStates, OwnStates
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.teachers.live import LiveTeacher
from tests.support.interchange_case import FAMILIES, LAST, LAYOUTS, MAPS, SOURCES, Case, case_of, supplies
from tests.support.pico import part, pico_model

MASKED = ("bert", "distilbert")


def head_inputs(case: Case, plan: Plan) -> list[tuple[Tensor, Tensor]]:
    """What meets the heads without and with the intervention: the student's, the teacher's."""
    sides = case.step.ask(case.batch, {"diito": plan})
    after = sides.after["diito"]
    found = [
        (sides.student.head_input, after.student.head_input),
        (sides.teachers["t"].observed.head_input, after.teachers["t"].observed.head_input),
    ]
    mask_BT = case.batch.attention_mask
    return [(one[mask_BT], other[mask_BT]) for one, other in found if one is not None and other is not None]


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_source_that_is_the_base_itself_changes_nothing(family: str, data: st.DataObject) -> None:
    """At equal positions, the output of a block put over itself."""
    intervention = Intervention(
        "diito",
        {"t": data.draw(st.sampled_from(MAPS))},
        positions=data.draw(st.sampled_from(["consecutive", "random"])),
        fraction=data.draw(st.floats(0.1, 1.0)),
    )
    case = case_of(family, family, data.draw(st.sampled_from(sorted(LAYOUTS))), intervention)
    case.step.begin(data.draw(st.integers(0, 9)), 10)
    plan = case.plan()
    itself = data.draw(
        st.sampled_from([OwnStates(plan.base), OtherStates(case.batch, plan.base)]), label="source"
    )
    for before, after in head_inputs(case, replace(plan, source=itself)):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


@pytest.mark.parametrize("source", sorted(SOURCES))
@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen2"])
def test_no_place_is_no_intervention(family: str, source: str) -> None:
    name, options = SOURCES[source]
    case = case_of(
        family, family, "packed", Intervention("diito", {"t": MAPS[0]}, source=name, options=options)
    )
    nothing = torch.zeros(0, dtype=torch.int64)
    plan = case.plan()
    none = Positions(nothing, nothing)
    kept = {
        key: nothing.to(value.dtype)
        for key in ("shares", "tokens", "ids")
        if isinstance(value := getattr(plan.source, key, None), Tensor)
    }
    changed: dict[str, Any] = {"places": none} if hasattr(plan.source, "places") else kept
    if source.startswith("mixup"):
        changed["draw"] = lambda width: torch.zeros(0, width)
    plan = replace(plan, base=none, source=replace(plan.source, **changed))
    for before, after in head_inputs(case, plan):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_copy_of_the_teacher_has_nothing_to_learn(data: st.DataObject) -> None:
    """Each layer for its own: loss and gradient are 0 for every option."""
    family = data.draw(st.sampled_from(FAMILIES))
    name, options = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)))]
    masked = ["masked"] if family in MASKED else []
    intervention = Intervention(
        "diito",
        {"t": {layer: (layer,) for layer in range(3)}},
        layer_schedule=data.draw(st.sampled_from(["random", "top-down", "bottom-up"])),
        positions=data.draw(st.sampled_from(["consecutive", "random", *masked])),
        source=name,
        options=options,
        source_site=data.draw(st.sampled_from(["block-output", "block-input"])),
        exact_dropout=data.draw(st.booleans()),
    )
    case = case_of(family, family, data.draw(st.sampled_from(sorted(LAYOUTS))), intervention, layers=(3, 3))
    teacher = LiveTeacher(deepcopy(case.step.student).requires_grad_(False), 61, name="t")
    temperature = data.draw(st.sampled_from([1.0, 2.0, 5.0]))
    terms = [
        Term(
            "diito", "forward_kl", on=data.draw(st.sampled_from(["labels", "attended"])), teacher="t",
            options={"temperature": temperature}, intervention=intervention,
        ),
        Term("cos", "cosine", on="attended", teacher="t", pairs=LAST, intervention=intervention),
    ]  # fmt: skip
    step = DistillationStep(
        case.step.student, terms, teachers={"t": teacher}, projections=case.step.projections,
        supplies=supplies(),
    ).train()  # fmt: skip
    step.begin(data.draw(st.integers(0, 9)), 10)
    output = step(case.batch, {name: max(float(n), 1.0) for name, n in step.count(case.batch).items()})
    assert all(abs(float(output.sums[name])) < 1e-9 for name in ("diito", "cos"))
    output.loss.backward()
    gradients = [p.grad for p in case.step.student.parameters() if p.grad is not None]
    assert gradients
    assert max(float(slope.abs().max()) for slope in gradients) < 1e-9


@pytest.mark.parametrize("source", ["pool", "in-context", "mixup"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_any_split_into_micro_batches_gives_the_same_gradient(family: str, source: str) -> None:
    name, options = SOURCES[source]
    case = case_of(
        family, family, "packed", Intervention("diito", {"t": MAPS[0]}, source=name, options=options)
    )
    losses, slopes = case.ours()
    counts = {name: float(count) for name, count in case.step.count(case.batch).items()}
    case.step.zero_grad()
    sums = dict.fromkeys(counts, 0.0)
    for rows in (slice(0, 1), slice(1, 3)):
        output = case.step(part(case.batch, rows), counts)
        output.loss.backward()
        sums = {key: total + float(output.sums[key]) for key, total in sums.items()}
    assert {key: total / counts[key] for key, total in sums.items()} == pytest.approx(losses, rel=1e-6)
    largest = max(float(slope.abs().max()) for slope in slopes.values())
    for key, p in case.step.named_parameters():
        assert p.grad is not None
        assert float((p.grad - slopes[key]).abs().max()) < 1e-6 * largest, key


def classifier(family: str, *, layers: int, width: int = 16, seed: int) -> PreTrainedModel:
    config = pico_model(family, layers=layers, width=width).config
    config.pad_token_id, config.num_labels, config.seq_classif_dropout = 0, 3, 0.0
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model.double()


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("site", ["block-output", "block-input"])
def test_classifiers_agree_on_the_classes_after_an_intervention(family: str, site: Any) -> None:
    """The class distribution after the intervention, against a whole run with hooks."""
    intervention = Intervention("diito", {"t": {1: (2, 3)}}, source_site=site)
    student, teacher = classifier(family, layers=2, seed=1), classifier(family, layers=4, seed=2)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]], dtype=torch.bool)
    ids = torch.randint(1, 61, (3, 6), generator=torch.Generator().manual_seed(0)) * mask
    batch = ExampleBatch(ids, mask, None, torch.tensor([0, 2, 1]), torch.arange(3), {})
    options = {"temperature": 2.0}
    step = DistillationStep(
        student,
        [
            Term("labels", "labels"),
            Term("diito", "forward_kl", teacher="t", options=options, intervention=intervention),
            Term("cos", "cosine", on="attended", teacher="t", pairs=LAST, intervention=intervention),
        ],
        teachers={"t": LiveTeacher(teacher, None, name="t")},
        projections=case_of("llama", "llama", "full", intervention).step.projections,
        supplies=supplies(),
    ).train()
    plan = step.drawn(batch)["diito"]
    found = step(batch, dict.fromkeys(step.count(batch), 1.0))
    own, theirs = (
        plainly(model, batch, plan, layers) for model, layers in ((student, (1,)), (teacher, (2, 3)))
    )
    log_own, log_theirs = (logits.div(2).log_softmax(-1) for logits, _ in (own, theirs))
    expected = 4 * (log_theirs.exp() * (log_theirs - log_own)).sum()
    assert float(found.sums["diito"]) == pytest.approx(float(expected), rel=1e-6)
    cosine = 1 - torch.nn.functional.cosine_similarity(own[1][mask], theirs[1][mask], dim=-1)
    assert float(found.sums["cos"]) == pytest.approx(float(cosine.sum()), rel=1e-6)
    assert step.count(batch) == {"labels": 3, "diito": 3, "cos": 15}
    found.loss.backward()
    assert all(p.grad is not None for p in student.base_model.parameters() if p.dim() == 2)


@torch.no_grad()
def plainly(
    model: PreTrainedModel, batch: ExampleBatch, plan: Plan, layers: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """A classifier's logits and last states with hooks that overwrite places of its blocks' outputs."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    blocks = model.base_model.get_submodule(ARCHITECTURES[model.config.model_type].blocks)
    kept: dict[int, Tensor] = {}
    inside = plan.source_site == "block-input"
    hooks = [
        block.register_forward_hook(
            lambda _b, args, out, i=i: kept.__setitem__(i, args[0] if inside else out)
        )
        for i, block in enumerate(blocks)
    ]
    model(**inputs)
    for hook in hooks:
        hook.remove()
    assert isinstance(plan.source, OwnStates)
    source = plan.source.places

    def overwrite(layer: int) -> Any:
        def hook(_block: Any, _args: Any, out: Tensor) -> Tensor:
            out = out.clone()
            out[plan.base.rows, plan.base.positions] = kept[layer][source.rows, source.positions]
            return out

        return hook

    hooks = [blocks[layer].register_forward_hook(overwrite(layer)) for layer in layers]
    last: list[Tensor] = []
    hooks.append(
        model.base_model.register_forward_hook(lambda _m, _a, o: last.append(o["last_hidden_state"]))
    )
    logits = model(**inputs).logits
    for hook in hooks:
        hook.remove()
    return logits, last[0]
