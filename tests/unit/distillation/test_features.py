"""Terms on states and maps: their sums by hand, what must not reach them, and their projections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stlm_kd.distillation.hidden_terms import Projections, TermProjections, attention_loss, hidden_state_loss
from stlm_kd.distillation.terms import Term
from stlm_kd.errors import ModelError
from stlm_kd.losses import MAP_LOSSES, STATE_LOSSES
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs
from tests.support.paths import GOLDEN_FOLDER

GOLDEN = load_file(GOLDEN_FOLDER / "features.safetensors")
PAIRS: tuple[tuple[Site, Site], ...] = ((0, 2), ("last", "last"))
LAYER_PAIRS = ((0, 2), (1, 5))
B, T = 3, 6


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_states(side: int, width: int, *, seed: int = 0) -> ModelOutputs:
    sites = [pair[side] for pair in PAIRS]
    return ModelOutputs(states={site: draw(B, T, width, seed=seed + 10 * i) for i, site in enumerate(sites)})


def with_maps(side: int, heads: int, *, seed: int = 0) -> ModelOutputs:
    forbidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    scores = [draw(B, heads, T, T, seed=seed + 10 * i) for i in range(2)]
    maps = [s.masked_fill(forbidden, float("-inf")).log_softmax(-1) for s in scores]
    return ModelOutputs(maps={pair[side]: m for pair, m in zip(LAYER_PAIRS, maps, strict=True)})


def mask_of(seed: int = 0) -> Tensor:
    mask_BT = draw(B, T, seed=seed) > 0
    mask_BT[0, 0], mask_BT[1, 1] = True, False
    return mask_BT


def projections(student: int, teacher: int, how: str = "auto", *, term: str = "hint", seed: int = 0):
    return TermProjections(PAIRS, student, teacher, how=how, term=term, seed=seed).double()


@pytest.mark.parametrize("loss", list(STATE_LOSSES))
def test_a_term_on_states_is_the_sum_over_positions_of_the_mean_over_pairs(loss: str) -> None:
    student, teacher, mask_BT = with_states(0, 4), with_states(1, 6, seed=5), mask_of()
    by_pair = projections(4, 6)
    expected = torch.tensor(0.0).double()
    for b, t in mask_BT.nonzero().tolist():
        for mine, theirs in PAIRS:
            linear = by_pair["layer0_to_layer2" if mine == 0 else "last_to_last"]
            projected = linear.weight @ student.states[mine][b, t] + linear.bias
            expected += STATE_LOSSES[loss](projected[None], teacher.states[theirs][b, t][None])[0] / 2
    found = hidden_state_loss(Term("term", loss, pairs=PAIRS), student, teacher, mask_BT, by_pair)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", list(MAP_LOSSES))
@pytest.mark.parametrize(("mine", "theirs"), [(2, 2), (2, 4), (1, 3)])
def test_a_term_on_maps_is_the_sum_over_queries_of_the_mean_over_heads_and_pairs(
    loss: str, mine: int, theirs: int
) -> None:
    """Where the numbers of heads differ, of the maps averaged over heads."""
    student, teacher, mask_BT = with_maps(0, mine), with_maps(1, theirs, seed=5), mask_of()
    expected = torch.tensor(0.0).double()
    for b, t in mask_BT.nonzero().tolist():
        for s, k in LAYER_PAIRS:
            student_HK, teacher_HK = student.maps[s][b, :, t], teacher.maps[k][b, :, t]
            if mine != theirs:
                student_HK, teacher_HK = (
                    m.exp().mean(0, keepdim=True).log() for m in (student_HK, teacher_HK)
                )
            expected += MAP_LOSSES[loss](student_HK, teacher_HK).mean() / 2
    found = attention_loss(Term("term", loss, pairs=LAYER_PAIRS), student, teacher, mask_BT)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("which", "layer"), [("first", 0), ("last", -1)])
def test_attention_terms_have_the_reference_values(which: str, layer: int) -> None:
    mask_BT = GOLDEN["mask"].bool()
    student, teacher = (
        ModelOutputs(maps={0: GOLDEN[f"{who}_attentions"][layer].log()}) for who in ("student", "teacher")
    )
    found = (
        attention_loss(Term("term", "attention_cross_entropy", pairs=((0, 0),)), student, teacher, mask_BT)
        / mask_BT.sum()
    )
    expected = GOLDEN[f"attention_ce.{which}.mean_over_heads_and_valid_queries"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    one_more = replace(student, maps={0: torch.cat([student.maps[0], student.maps[0]], dim=1)})
    averaged = (
        attention_loss(Term("term", "attention_cross_entropy", pairs=((0, 0),)), one_more, teacher, mask_BT)
        / mask_BT.sum()
    )
    expected = GOLDEN[f"attention_ce.{which}.heads_averaged.mean_over_valid_queries"]
    torch.testing.assert_close(averaged, expected, rtol=0, atol=1e-10)


def test_a_hint_term_has_the_reference_value() -> None:
    mask_BT = GOLDEN["mask"].bool()
    student, teacher = (ModelOutputs(states={0: GOLDEN[f"{who}_hidden"]}) for who in ("student", "teacher"))
    made = TermProjections([(0, 0)], 6, 10, term="hint", seed=0).double()
    made["layer0_to_layer0"].load_state_dict({"weight": GOLDEN["proj_weight"], "bias": GOLDEN["proj_bias"]})
    found = (
        hidden_state_loss(Term("term", "hint", pairs=((0, 0),)), student, teacher, mask_BT, made)
        / mask_BT.sum()
    )
    torch.testing.assert_close(found, GOLDEN["hint_mse.mean_masked_elements"], rtol=0, atol=1e-10)


def tensors_of(observed: ModelOutputs) -> Iterator[Tensor]:
    yield from observed.states.values()
    yield from observed.maps.values()


def needing_gradients(observed: ModelOutputs) -> ModelOutputs:
    return ModelOutputs(
        states={site: state.clone().requires_grad_() for site, state in observed.states.items()},
        maps={layer: m.clone().requires_grad_() for layer, m in observed.maps.items()},
    )


def spoilt(observed: ModelOutputs, mask_BT: Tensor, value: float) -> ModelOutputs:
    """With another value at every position outside the mask."""
    outside = ~mask_BT
    return ModelOutputs(
        states={site: s.masked_fill(outside[:, :, None], value) for site, s in observed.states.items()},
        maps={layer: m.masked_fill(outside[:, None, :, None], value) for layer, m in observed.maps.items()},
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("loss", [*STATE_LOSSES, *MAP_LOSSES])
@pytest.mark.parametrize("heads", [2, 3])
def test_positions_outside_the_mask_have_no_influence_on_value_or_gradient(
    loss: str, value: float, heads: int
) -> None:
    if loss in MAP_LOSSES:
        student, teacher = with_maps(0, 2), with_maps(1, heads, seed=5)
    else:
        student, teacher = with_states(0, 4), with_states(1, 6, seed=5)
    mask_BT = mask_of()
    results = []
    for mine, theirs in (
        (student, teacher),
        (spoilt(student, mask_BT, value), spoilt(teacher, mask_BT, value)),
    ):
        observed, made = needing_gradients(mine), projections(4, 6)
        total = term_sum(loss, observed, theirs, mask_BT, made)
        total.backward()
        grads = [tensor.grad for tensor in tensors_of(observed)]
        if loss in STATE_LOSSES:
            grads += [parameter.grad for parameter in made.parameters()]
        results.append([total, *grads])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(result.isfinite().all() for result in results[1])


def term_sum(
    loss: str, mine: ModelOutputs, theirs: ModelOutputs, mask_BT: Tensor, made: TermProjections
) -> Tensor:
    if loss in MAP_LOSSES:
        return attention_loss(Term("term", loss, pairs=LAYER_PAIRS), mine, theirs, mask_BT)
    return hidden_state_loss(Term("term", loss, pairs=PAIRS), mine, theirs, mask_BT, made)


@pytest.mark.parametrize("loss", [*STATE_LOSSES, *MAP_LOSSES])
@given(cuts=st.sets(st.integers(0, B)), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_any_split_of_the_rows_has_the_same_sum(loss: str, cuts: set[int], seed: int) -> None:
    if loss in MAP_LOSSES:
        student, teacher = with_maps(0, 2), with_maps(1, 3, seed=5)
    else:
        student, teacher = with_states(0, 4), with_states(1, 6, seed=5)
    mask_BT, made = mask_of(seed), projections(4, 6)
    whole = term_sum(loss, student, teacher, mask_BT, made)
    parts = [
        term_sum(loss, rows_of(student, rows), rows_of(teacher, rows), mask_BT[rows], made)
        for rows in (slice(*ends) for ends in pairwise(sorted({0, *cuts, B})))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole, rtol=1e-12, atol=1e-14)


def rows_of(observed: ModelOutputs, rows: slice) -> ModelOutputs:
    return ModelOutputs(
        states={site: state[rows] for site, state in observed.states.items()},
        maps={layer: m[rows] for layer, m in observed.maps.items()},
    )


@pytest.mark.parametrize("loss", list(MAP_LOSSES))
def test_the_gradient_through_averaged_heads_is_that_of_finite_differences(loss: str) -> None:
    forbidden = torch.ones(3, 3, dtype=torch.bool).triu(1)

    def of_scores(scores: Tensor) -> Tensor:
        mine = ModelOutputs(maps={0: scores.masked_fill(forbidden, float("-inf")).log_softmax(-1)})
        theirs = ModelOutputs(
            maps={0: draw(1, 1, 3, 3, seed=4).masked_fill(forbidden, float("-inf")).log_softmax(-1)}
        )
        return attention_loss(
            Term("term", loss, pairs=((0, 0),)), mine, theirs, torch.ones(1, 3, dtype=torch.bool)
        )

    assert torch.autograd.gradcheck(of_scores, draw(1, 2, 3, 3, seed=3).requires_grad_())


@pytest.mark.parametrize(
    ("how", "student", "teacher", "count"),
    [("auto", 4, 6, 2), ("auto", 4, 4, 0), ("linear", 4, 4, 2), ("linear", 4, 6, 2), ("none", 4, 4, 0)],
)
def test_projections_are_made_where_they_are_needed(how: str, student: int, teacher: int, count: int) -> None:
    made = projections(student, teacher, how)
    assert list(made) == ["layer0_to_layer2", "last_to_last"][:count]
    state_ND = draw(3, student, seed=0)
    for pair in PAIRS:
        assert made(state_ND, pair).shape == (3, teacher)
        assert (made(state_ND, pair) is state_ND) == (count == 0)


def test_widths_that_differ_without_a_projection_are_refused() -> None:
    with pytest.raises(
        ModelError, match="none, but the student's states are 4 wide and the teacher's 6; use"
    ):
        projections(4, 6, "none")


def test_projections_are_drawn_by_seed_term_and_pair_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = projections(4, 6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again = TermProjections(PAIRS[1:], 4, 6, term="hint", seed=0).double()
    assert torch.equal(one["last_to_last"].weight, again["last_to_last"].weight)
    assert torch.equal(one["last_to_last"].bias, again["last_to_last"].bias)
    others = [projections(4, 6, seed=1)["last_to_last"], projections(4, 6, term="cosine")["last_to_last"]]
    others.append(one["layer0_to_layer2"])
    assert not any(torch.equal(one["last_to_last"].weight, other.weight) for other in others)


def test_projections_begin_as_pytorchs_own_layers_do() -> None:
    made = TermProjections([(0, 0)], 400, 300, term="hint", seed=0)["layer0_to_layer0"]
    torch.manual_seed(0)
    usual = nn.Linear(400, 300)
    for name in ("weight", "bias"):
        found, expected = getattr(made, name), getattr(usual, name)
        assert found.abs().max() <= 1 / 20
        assert found.std().item() == pytest.approx(expected.std().item(), rel=0.15)


def all_projections() -> Projections:
    return Projections(
        {"hint": projections(4, 6), "cosine.big-2.1": projections(4, 6, term="cosine.big-2.1")}
    )


def test_checkpoints_name_a_projection_by_term_and_pair() -> None:
    names = {
        name.removesuffix(".weight") for name in all_projections().state_dict() if name.endswith("weight")
    }
    terms, pairs = ("hint", "cosine~big-2~1"), ("layer0_to_layer2", "last_to_last")
    assert names == {f"{term}.{pair}" for term in terms for pair in pairs}
    assert not Projections().state_dict()
    assert len(Projections({name: projections(4, 6, term=name) for name in ("a.b", "a-b")})) == 2


def test_a_resting_term_gives_its_projections_a_gradient_of_nothing() -> None:
    made = all_projections()
    total = made.nothing({"cosine.big-2.1", "labels"})
    assert isinstance(total, Tensor) and total.item() == 0.0
    total.backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in made.of("cosine.big-2.1").parameters())
    assert all(p.grad is None for p in made.of("hint").parameters())
    assert made.nothing({"labels"}) == 0.0


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4, dtype=torch.float64)
        self.projections = all_projections()

    def forward(self, mask_BT: Tensor, resting: frozenset[str]) -> Tensor:
        given, teacher = with_states(0, 4), with_states(1, 6, seed=5)
        student = ModelOutputs(states={site: self.student(state) for site, state in given.states.items()})
        total = torch.tensor(0.0).double() + self.projections.nothing(resting)
        for term in ("hint", "cosine.big-2.1"):
            if term not in resting:
                made = self.projections.of(term)
                total = total + hidden_state_loss(
                    Term("term", "hint", pairs=PAIRS), student, teacher, mask_BT, made
                )
        return total


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_every_projection_is_reached_in_every_step_of_a_wrapped_module(process_group: None) -> None:
    """DDP would wait for the parameters that a step left out: without positions, or where a term rests."""
    step = Step()
    wrapped = DistributedDataParallel(step)
    optimizer = torch.optim.SGD(step.parameters(), lr=0.01)
    before = {name: tensor.clone() for name, tensor in step.state_dict().items()}
    losses = []
    nowhere = torch.zeros(B, T, dtype=torch.bool)
    steps = [(mask_of(), frozenset()), (nowhere, frozenset()), (mask_of(), frozenset({"hint"}))]
    for mask_BT, resting in [*steps, steps[0]]:
        optimizer.zero_grad(set_to_none=True)
        loss = wrapped(mask_BT, resting)
        loss.backward()
        assert all(p.grad is not None for p in step.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and losses[1] == 0.0
    after = step.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in after)


def test_states_and_projections_of_different_types_meet() -> None:
    """A student in half precision whose projections are not, and under autocast."""
    student, teacher = with_states(0, 4), with_states(1, 6, seed=5)
    made, mask_BT = projections(4, 6).float(), mask_of()
    exact = hidden_state_loss(Term("term", "hint", pairs=PAIRS), student, teacher, mask_BT, made)
    half = ModelOutputs(states={site: state.bfloat16() for site, state in student.states.items()})
    found = hidden_state_loss(Term("term", "hint", pairs=PAIRS), half, teacher, mask_BT, made)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = hidden_state_loss(Term("term", "hint", pairs=PAIRS), half, teacher, mask_BT, made)
    torch.testing.assert_close(found, exact, rtol=0.02, atol=0)
