"""What is drawn of a distribution, and what half precision does to it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stlm_kd.losses.sampled import TopKTail
from stlm_kd.teachers.cache.format import Layout
from stlm_kd.teachers.cache.reader import Found, distribution
from stlm_kd.teachers.cache.sampling import head_and_tail, uniforms
from tests.support.loss_checks import estimate

OUTCOMES, HEAD, DRAWS = 40, 4, 3


def many(logits: torch.Tensor, copies: int, *, temperature: float = 1.0, seed: int = 0) -> TopKTail:
    """One token's distribution cached so often, each time with other draws, as it is read back."""
    layout = Layout(OUTCOMES, HEAD, DRAWS, temperature)
    numbers = uniforms(seed, np.arange(copies), np.zeros(copies, np.int64), DRAWS)
    labels = torch.full((copies,), 7)
    made = head_and_tail(
        logits.expand(copies, -1), labels, torch.from_numpy(numbers), head=HEAD, temperature=temperature
    )
    columns = {name: made[name].numpy().astype(dtype) for name, (dtype, _) in layout.columns().items()}
    found = distribution(Found(torch.ones(copies, dtype=torch.bool), columns), layout)
    assert isinstance(found, TopKTail)
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_what_is_read_back_is_the_distribution_on_average(temperature: float) -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(OUTCOMES)
    said = many(logits, 40_000, temperature=temperature)
    probs = estimate(said, OUTCOMES)
    expected = (logits / temperature).softmax(-1)
    error = (probs.mean(0) - expected) / (probs.std(0) / math.sqrt(len(probs))).clamp(min=3e-6)
    assert probs.std(0).max() > 1e-2
    assert error[said.ids[0, :HEAD]].abs().max() < 100, "the head is off by half precision alone"
    rest = torch.ones(OUTCOMES, dtype=torch.bool).scatter_(0, said.ids[0, :HEAD], False)
    assert error[rest].abs().max() < 4.5
    assert torch.allclose(probs.sum(-1), torch.ones(len(probs)), atol=1e-5)


def test_half_precision_leaves_no_bias_in_the_masses() -> None:
    """Over many distributions the errors of the head's probabilities average out, and all sum to 1."""
    torch.manual_seed(1)
    logits = 3 * torch.randn(20_000, OUTCOMES)
    layout, numbers = Layout(OUTCOMES, HEAD, DRAWS), torch.rand(20_000, DRAWS, dtype=torch.float64)
    made = head_and_tail(logits, torch.zeros(20_000, dtype=torch.int64), numbers, head=HEAD, temperature=1.0)
    columns = {name: made[name].numpy().astype(dtype) for name, (dtype, _) in layout.columns().items()}
    said = distribution(Found(torch.ones(20_000, dtype=torch.bool), columns), layout)
    assert isinstance(said, TopKTail)
    error = said.masses()[:, :HEAD].double() - made["log_probs"].double().exp()
    assert error.abs().max() < 1e-3
    assert abs(float(error.sum(-1).mean())) < 4 * float(error.sum(-1).std()) / math.sqrt(len(error)) + 1e-7
    assert torch.allclose(said.masses().sum(-1), torch.ones(20_000), atol=1e-6)


def test_entropy_and_the_labels_log_probability_are_those_of_the_whole_distribution() -> None:
    torch.manual_seed(2)
    logits = torch.randn(OUTCOMES)
    said, log = many(logits, 2, temperature=2.0), (logits / 2).log_softmax(-1)
    assert said.label_log_probs is not None
    assert float(said.label_log_probs[0]) == pytest.approx(float(log[7]), rel=1e-3)
    assert float(said.entropy[0]) == pytest.approx(-float((log.exp() * log).sum()), rel=1e-3)


def test_stratified_draws_vary_less_than_draws_one_by_one() -> None:
    torch.manual_seed(3)
    logits = torch.randn(OUTCOMES)
    said = many(logits, 20_000)
    spread = estimate(said, OUTCOMES).var(0).sum()
    tail = float(said.tail[0].exp())
    outside = torch.ones(OUTCOMES, dtype=torch.bool).scatter_(0, said.ids[0, :HEAD], False)
    share = logits.softmax(-1)[outside] / tail
    plain = tail**2 * (share * (1 - share)).sum() / DRAWS
    assert 0.5 * plain < spread < 0.95 * plain


def test_a_teacher_that_is_sure_or_rules_outcomes_out_has_no_tail_to_draw_from() -> None:
    logits = torch.full((OUTCOMES,), -torch.inf)
    logits[[3, 5]] = torch.tensor([1.0, 0.0])
    said = many(logits, 2)
    expected = torch.zeros(OUTCOMES).index_copy(0, torch.tensor([3, 5]), logits[[3, 5]].softmax(-1))
    assert torch.allclose(estimate(said, OUTCOMES), expected.expand(2, -1), atol=1e-3)
    assert torch.isfinite(said.masses()).all()


def test_draws_are_a_function_of_seed_item_and_position() -> None:
    items, positions = np.array([5, 2, 5]), np.array([0, 9, 1])
    together = uniforms(1, items, positions, DRAWS)
    for place in range(3):
        alone = uniforms(1, items[place : place + 1], positions[place : place + 1], DRAWS)
        assert (alone[0] == together[place]).all()
    assert len(np.unique(together)) == 3 * DRAWS
    assert (uniforms(2, items, positions, DRAWS) != together).all()
    assert ((together >= 0) & (together < 1)).all()


def test_the_default_format_takes_at_most_88_bytes_at_gpt2s_vocabulary() -> None:
    sizes = {
        (head, draws): Layout(50_257, head, draws).token_bytes for head, draws in ((16, 8), (8, 8), (32, 16))
    }
    assert sizes == {(16, 8): 86, (8, 8): 54, (32, 16): 166}
    assert Layout(65_537, 16, 8).token_bytes == 86 + 24 * 2
