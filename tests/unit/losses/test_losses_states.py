"""Losses on states and maps against reference values, formulas written out, and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.spatial.distance import cosine as scipy_cosine
from scipy.stats import entropy
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses import MAP_LOSSES, STATE_LOSSES
from stlm_kd.losses.attention import attention_cross_entropy, attention_mse
from stlm_kd.losses.hidden import cosine, hint, normalised_mse
from tests.support.paths import GOLDEN_FOLDER

GOLDEN = load_file(GOLDEN_FOLDER / "features.safetensors")
SEEDS = st.integers(0, 1000)


def states(seed: int, shape: tuple[int, int] = (5, 7)) -> Tensor:
    return 3.0 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps(seed: int, shape: tuple[int, int] = (6, 6)) -> Tensor:
    """Causal ones, so that every number of keys occurs."""
    forbidden = torch.ones(shape, dtype=torch.bool).triu(1)
    return functional.log_softmax(states(seed, shape).masked_fill(forbidden, float("-inf")), dim=-1)


def test_hint_has_the_reference_values_and_gradients() -> None:
    mask = GOLDEN["mask"].bool()
    student = GOLDEN["student_hidden"].clone().requires_grad_()
    weight, bias = (GOLDEN[f"proj_{name}"].clone().requires_grad_() for name in ("weight", "bias"))
    values = hint(
        functional.linear(student, weight, bias).flatten(0, 1), GOLDEN["teacher_hidden"].flatten(0, 1)
    )
    expected = {name: GOLDEN[f"hint_mse.{name}"] for name in ("mean_all_elements", "mean_masked_elements")}
    assert torch.allclose(values.mean(), expected["mean_all_elements"], rtol=0, atol=1e-10)
    masked = values[mask.flatten()].mean()
    assert torch.allclose(masked, expected["mean_masked_elements"], rtol=0, atol=1e-10)
    width = GOLDEN["teacher_hidden"].shape[-1]
    assert torch.allclose(width * masked, GOLDEN["hint_mse.sum_dim_mean_masked_tokens"], rtol=0, atol=1e-9)
    masked.backward()
    for name, tensor in (("proj_weight", weight), ("proj_bias", bias), ("student_hidden", student)):
        assert torch.allclose(tensor.grad, GOLDEN[f"grad_hint_mean_masked.{name}"], rtol=0, atol=1e-10)
    unbiased = hint(functional.linear(student, weight)[mask], GOLDEN["teacher_hidden"][mask]).mean()
    wanted = GOLDEN["hint_mse_no_projection_bias.mean_masked_elements"]
    assert torch.allclose(unbiased, wanted, rtol=0, atol=1e-10)


def test_cosine_has_the_reference_values() -> None:
    values = cosine(GOLDEN["cos_student"].flatten(0, 1), GOLDEN["cos_teacher"].flatten(0, 1))
    assert torch.allclose(values, GOLDEN["cosine_loss_per_token"].flatten(), rtol=0, atol=1e-10)
    masked = values[GOLDEN["mask"].bool().flatten()].mean()
    assert torch.allclose(masked, GOLDEN["cosine.mean_masked_tokens"], rtol=0, atol=1e-10)


@pytest.mark.parametrize(("which", "layer"), [("first", 0), ("last", -1)])
def test_attention_cross_entropy_has_the_reference_values(which: str, layer: int) -> None:
    student, teacher = (GOLDEN[f"{who}_attentions"][layer].log() for who in ("student", "teacher"))
    values = attention_cross_entropy(student.flatten(0, 2), teacher.flatten(0, 2)).view(student.shape[:3])
    assert torch.allclose(values, GOLDEN[f"attention_ce_per_query.{which}"], rtol=0, atol=1e-10)
    valid = values.transpose(1, 2)[GOLDEN["mask"].bool()]
    expected = GOLDEN[f"attention_ce.{which}.mean_over_heads_and_valid_queries"]
    assert torch.allclose(valid.mean(), expected, rtol=0, atol=1e-10)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_losses_of_states_are_their_formulas(seed: int) -> None:
    student, teacher = states(seed), states(seed + 1)
    rows = list(zip(student.numpy(), teacher.numpy(), strict=True))
    np.testing.assert_allclose(hint(student, teacher), [((s - t) ** 2).mean() for s, t in rows])
    np.testing.assert_allclose(cosine(student, teacher), [scipy_cosine(s, t) for s, t in rows], atol=1e-12)
    distances = [((s / np.sqrt(s @ s) - t / np.sqrt(t @ t)) ** 2).sum() for s, t in rows]
    np.testing.assert_allclose(normalised_mse(student, teacher), distances, atol=1e-12)


@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_losses_of_maps_are_their_formulas(seed: int) -> None:
    student, teacher = maps(seed), maps(seed + 1)
    p, q = teacher.exp().numpy(), student.exp().numpy()
    expected = [entropy(p[i, : i + 1]) + entropy(p[i, : i + 1], q[i, : i + 1]) for i in range(6)]
    np.testing.assert_allclose(attention_cross_entropy(student, teacher), expected, atol=1e-12)
    squares = [((p[i, : i + 1] - q[i, : i + 1]) ** 2).mean() for i in range(6)]
    np.testing.assert_allclose(attention_mse(student, teacher), squares, atol=1e-12)


@pytest.mark.parametrize("name", list(STATE_LOSSES))
@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_losses_of_states_are_zero_at_equality_and_never_negative(name: str, seed: int) -> None:
    student, teacher = states(seed), states(seed + 1)
    assert torch.allclose(STATE_LOSSES[name](teacher, teacher), torch.zeros(5).double(), atol=1e-12)
    assert (STATE_LOSSES[name](student, teacher) > 1e-6).all()


@pytest.mark.parametrize("name", list(MAP_LOSSES))
@given(seed=SEEDS)
@settings(deadline=None, max_examples=20)
def test_losses_of_maps_are_least_at_equality(name: str, seed: int) -> None:
    student, teacher = maps(seed), maps(seed + 1)
    least = MAP_LOSSES[name](teacher, teacher)
    assert (least >= 0).all()
    assert (MAP_LOSSES[name](student, teacher)[1:] > least[1:]).all()
    if name == "attention_mse":
        assert torch.equal(least, torch.zeros(6).double())
    else:
        np.testing.assert_allclose(least, entropy(teacher.exp().numpy(), axis=1), atol=1e-12)


@pytest.mark.parametrize("loss", [cosine, normalised_mse])
@given(seed=SEEDS, mine=st.floats(1e-3, 1e3), theirs=st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=20)
def test_lengths_of_states_do_not_count_where_directions_are_compared(
    loss, seed: int, mine: float, theirs: float
) -> None:
    student, teacher = states(seed), states(seed + 1)
    assert torch.allclose(loss(mine * student, theirs * teacher), loss(student, teacher), atol=1e-12)


def test_the_normalised_distance_is_twice_the_cosine() -> None:
    assert torch.allclose(normalised_mse(states(0), states(1)), 2 * cosine(states(0), states(1)))


@pytest.mark.parametrize("name", list(STATE_LOSSES))
def test_gradients_of_losses_of_states_are_those_of_finite_differences(name: str) -> None:
    student, teacher = states(0).requires_grad_(), states(1).requires_grad_()
    assert torch.autograd.gradcheck(STATE_LOSSES[name], (student, teacher))


@pytest.mark.parametrize("name", list(MAP_LOSSES))
def test_gradients_of_losses_of_maps_are_those_of_finite_differences(name: str) -> None:
    forbidden = torch.ones(6, 6, dtype=torch.bool).triu(1)

    def of_scores(student: Tensor, teacher: Tensor) -> Tensor:
        scores = (s.masked_fill(forbidden, float("-inf")) for s in (student, teacher))
        return MAP_LOSSES[name](*(functional.log_softmax(s, dim=-1) for s in scores))

    student, teacher = states(0, (6, 6)).requires_grad_(), states(1, (6, 6)).requires_grad_()
    assert torch.autograd.gradcheck(of_scores, (student, teacher))


@pytest.mark.parametrize("loss", [cosine, normalised_mse])
def test_a_state_of_length_zero_has_a_finite_value_and_no_gradient(loss) -> None:
    student = torch.zeros(2, 7, requires_grad=True)
    values = loss(student, torch.stack([states(0)[0], torch.zeros(7)]).float())
    values.sum().backward()
    expected = [1.0, 1.0] if loss is cosine else [1.0, 0.0]
    assert torch.allclose(values, torch.tensor(expected))
    assert torch.equal(student.grad, torch.zeros(2, 7))


def test_keys_to_which_the_teacher_gives_nothing_leave_the_cross_entropy_finite() -> None:
    """Also where probabilities have underflown and the student may not look."""
    teacher = torch.tensor([[-1e-9, -300.0, float("-inf")]], requires_grad=True)
    student = torch.tensor([[-2.0, float("-inf"), float("-inf")]], requires_grad=True)
    value = attention_cross_entropy(student, teacher)
    assert torch.allclose(value, torch.tensor([2.0]))
    value.sum().backward()
    assert torch.equal(student.grad, torch.tensor([[-1.0, 0.0, 0.0]]))
    assert teacher.grad.isfinite().all()


def test_a_student_that_may_not_look_where_the_teacher_does_is_infinitely_wrong() -> None:
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert attention_cross_entropy(student, teacher).item() == float("inf")
    assert attention_mse(student, teacher).item() == pytest.approx(0.25)


@pytest.mark.parametrize("name", list(MAP_LOSSES))
def test_forbidden_keys_more_or_less_change_nothing(name: str) -> None:
    student, teacher = maps(0), maps(1)
    padded = [functional.pad(m, (0, 3), value=float("-inf")) for m in (student, teacher)]
    assert torch.allclose(MAP_LOSSES[name](*padded), MAP_LOSSES[name](student, teacher), atol=1e-14)


@pytest.mark.parametrize("name", list(MAP_LOSSES))
def test_a_query_that_may_look_nowhere_counts_nothing(name: str) -> None:
    student = torch.full((1, 4), float("-inf"), requires_grad=True)
    value = MAP_LOSSES[name](student, student.detach())
    value.sum().backward()
    assert value.item() == 0.0 and torch.equal(student.grad, torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_before_anything_is_summed(dtype: torch.dtype) -> None:
    student, teacher = states(0).to(dtype), states(1).to(dtype)
    for name in STATE_LOSSES:
        found, expected = (
            STATE_LOSSES[name](student, teacher),
            STATE_LOSSES[name](student.float(), teacher.float()),
        )
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    half_maps, other_maps = maps(0).to(dtype), maps(1).to(dtype)
    for name in MAP_LOSSES:
        assert MAP_LOSSES[name](half_maps, other_maps).dtype == torch.float32
