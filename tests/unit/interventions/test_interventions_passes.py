"""A step with interventions against six whole runs with hooks: losses, gradients, what is left untouched."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.interventions.plan import OtherStates, OwnStates
from stlm_kd.interventions.rerun import InterventionPass
from stlm_kd.interventions.spec import Intervention
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs
from stlm_kd.models.partial_forward import Inputs
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from tests.support.interchange_case import (
    FAMILIES,
    LAYOUTS,
    MAPS,
    SOURCES,
    Case,
    assert_same,
    case_of,
    supplies,
)
from tests.support.pico import pico_model
from tests.support.six_passes import counterfactual


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_step_is_six_whole_runs(family: str, attention: str, data: st.DataObject) -> None:
    source, options = SOURCES[data.draw(st.sampled_from(sorted(SOURCES)))]
    masked = family in ("bert", "distilbert")
    others = [other for other in FAMILIES if (other in ("bert", "distilbert")) == masked]
    intervention = Intervention(
        "diito",
        {"t": data.draw(st.sampled_from(MAPS))},
        positions=data.draw(st.sampled_from(["consecutive", "random", *(["masked"] if masked else [])])),
        max_tokens=data.draw(st.sampled_from([None, 1])),
        source=source,
        options=options,
        source_site=data.draw(st.sampled_from(["block-output", "block-input"])),
        exact_dropout=data.draw(st.booleans()),
    )
    case = case_of(
        family,
        data.draw(st.sampled_from(others)),
        data.draw(st.sampled_from(sorted(LAYOUTS))),
        intervention,
        attention=attention,
        width=data.draw(st.sampled_from([16, 24])),
    )
    assert_same(case)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("source", ["batch", "pool", "mixup"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_six_whole_runs_when_gradients_are_checkpointed(family: str, source: str) -> None:
    name, options = SOURCES[source]
    intervention = Intervention("diito", {"t": MAPS[0]}, source=name, options=options)
    assert_same(case_of(family, family, "packed", intervention, checkpointing=True))


CAUSAL = ("gpt2", "llama", "mobillama", "qwen2", "phi3")


def seen_lengths(case: Case) -> list[int]:
    """The positions that each block of the student runs, in order of its runs."""
    lengths: list[int] = []
    path = ARCHITECTURES[case.step.student.config.model_type].blocks
    for block in case.step.student.base_model.get_submodule(path):
        block.register_forward_pre_hook(lambda _b, args: lengths.append(args[0].shape[1]))
    case.step.ask(case.batch, case.step.drawn(case.batch))
    return lengths


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", CAUSAL)
def test_positions_before_the_first_exchange_stay_as_they_are(family: str, attention: str) -> None:
    intervention = Intervention("diito", {"t": {0: (0, 1)}})
    case = case_of(family, family, "packed", intervention, attention=attention)
    plan = case.plan()
    sides = case.step.ask(case.batch, {"diito": plan})
    after = sides.after["diito"]
    for before, changed in (
        (sides.student.head_input, after.student.head_input),
        (sides.teachers["t"].observed.head_input, after.teachers["t"].observed.head_input),
    ):
        assert before is not None and changed is not None
        untouched = ~plan.touched & case.batch.attention_mask
        assert untouched.any()
        torch.testing.assert_close(before[untouched], changed[untouched], rtol=0, atol=1e-6)
        assert not torch.allclose(before[plan.touched], changed[plan.touched])
    assert seen_lengths(case) == [8, 8, 8]
    assert_same(case)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_source_of_its_own_is_run_to_the_deepest_aligned_block_only(family: str) -> None:
    options = {"pairing": "independent"}
    case = case_of(
        family, family, "full", Intervention("diito", {"t": {0: (0, 1)}}, options=options), layers=(4, 4)
    )
    case.step.student.eval()
    lengths = seen_lengths(case)
    assert len(lengths) == 4 + 1 + 3


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("pairing", ["batch", "independent"])
def test_the_gradient_goes_through_the_students_source(family: str, pairing: str) -> None:
    """With states of the source cut off from the graph, the gradient would be another."""
    intervention = Intervention("diito", {"t": {1: (2,)}}, options={"pairing": pairing})
    case = case_of(family, family, "full", intervention)
    _, slopes = case.ours()
    _, expected = case.plainly()
    read = InterventionPass._source_states

    def detached(
        self: InterventionPass, source: OwnStates | OtherStates, inputs: Inputs, base: ModelOutputs
    ) -> dict[Site, Tensor]:
        return {site: state.detach() for site, state in read(self, source, inputs, base).items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterventionPass, "_source_states", detached)
        _, without = case.ours()
    largest = max(float(slope.abs().max()) for slope in expected.values())
    apart = {
        name: max(float((found[name] - slope).abs().max()) for name, slope in expected.items())
        for name, found in (("with", slopes), ("without", without))
    }
    assert apart["with"] < 1e-6 * largest
    assert apart["without"] > 1e-3 * largest


def test_several_teachers_are_combined_as_the_base_distributions_are() -> None:
    """One student, two teachers of other depths and widths; the mixture after the same intervention."""
    intervention = Intervention("diito", {"t": {0: (0, 1)}, "u": {0: (0,)}})
    case = case_of("llama", "gpt2", "packed", intervention)
    other = pico_model("qwen2", layers=2, width=24, seed=7).double()
    weights = {"t": 0.25, "u": 0.75}
    step = DistillationStep(
        case.step.student,
        [Term("diito", "forward_kl", on="attended", teacher=COMBINED, intervention=intervention)],
        teachers={"t": case.teacher, "u": LiveTeacher(other, 61, name="u")},
        combination=Combination("weighted", {"weights": weights}),
        supplies=supplies(),
    ).train()
    plan, batch = step.drawn(case.batch)["diito"], case.batch
    counts = {name: float(count) for name, count in step.count(batch).items()}
    found = float(step(batch, counts).sums["diito"])
    with torch.no_grad():
        said = {
            name: counterfactual(model, batch, plan, plan.teacher_layers[name]).logits.softmax(-1)
            for name, model in (("t", case.teacher.model), ("u", other))
        }
        mixture = sum(weights[name] * said[name] for name in said)
        own = counterfactual(step.student, batch, plan, (0,)).logits.log_softmax(-1)
    expected = (mixture * (mixture.log() - own)).sum(-1)[batch.attention_mask].sum()
    assert found == pytest.approx(float(expected), rel=1e-6)


def test_a_teacher_asked_by_one_loss_alone_does_not_change_the_others() -> None:
    intervention = Intervention("diito", {"t": {0: (0, 1)}})
    case = case_of("llama", "llama", "packed", intervention)
    other = LiveTeacher(pico_model("gpt2", layers=2, seed=7).double(), 61, name="u")
    kl = Term("kl", "forward_kl", teacher="u")
    diito = Term("diito", "forward_kl", on="attended", teacher="t", intervention=intervention)
    sums = {}
    for terms in ([kl], [diito], [kl, diito]):
        step = DistillationStep(
            case.step.student, terms, teachers={"t": case.teacher, "u": other}, supplies=supplies()
        ).train()
        sums[tuple(term.name for term in terms)] = step(case.batch, dict(step.count(case.batch))).sums
    torch.testing.assert_close(sums["kl", "diito"]["kl"], sums["kl",]["kl"])
    torch.testing.assert_close(sums["kl", "diito"]["diito"], sums["diito",]["diito"])


def test_a_weight_of_zero_runs_nothing() -> None:
    case = case_of("llama", "llama", "full", Intervention("diito", {"t": {0: (0, 1)}}))
    terms = [Term("labels", "labels"), replace(case.step.terms[2], weight=0.0)]
    step = DistillationStep(case.step.student, terms, teachers={"t": case.teacher}).train()
    ran: list[nn.Module] = []
    for block in [*case.step.student.base_model.layers, *case.teacher.model.base_model.layers]:
        block.register_forward_hook(lambda block, *_: ran.append(block))
    step(case.batch, dict(step.count(case.batch)))
    assert ran == list(case.step.student.base_model.layers)


def test_dropout_is_shared_unless_it_must_be_exact() -> None:
    """With dropout, the base's positions before the intervention are the same run, or runs of their own."""
    for exact in (False, True):
        case = case_of("gpt2", "gpt2", "full", Intervention("d", {"t": {1: (2,)}}, exact_dropout=exact))
        for module in case.step.student.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.5
        torch.manual_seed(0)
        lengths = seen_lengths(case)
        assert len(lengths) == (2 if not exact else 2 + 2 + 2)
