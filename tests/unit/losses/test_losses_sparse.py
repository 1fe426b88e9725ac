from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from stlm_kd.losses import (
    SPARSE_LOSSES,
    SPARSE_SLOPES,
    TemperedLogits,
    TopKTail,
    forward_kl,
    sparse_forward_kl,
)
from tests.support.loss_checks import estimate, logits, slope_of

OUTCOMES, HEAD = 6, 2


def sampled(teacher: Tensor, temperature: float, draws: Tensor) -> TopKTail:
    """The head of one token's distribution, once for each row of draws (S, M) of its outcomes."""
    log = (teacher / temperature).log_softmax(-1)
    top = log.topk(HEAD)
    ids = torch.cat([top.indices.expand(len(draws), -1), draws], dim=-1)
    tail = torch.log1p(-top.values.exp().sum())
    entropy = -(log.exp() * log).sum()
    every = len(draws)
    return TopKTail(
        ids, top.values.expand(every, -1), tail.expand(every), entropy.expand(every), temperature, OUTCOMES
    )


def all_draws(teacher: Tensor, temperature: float, number: int) -> tuple[Tensor, Tensor]:
    """Every outcome of so many draws from the tail (S, M), and its probability (S,)."""
    probs = (teacher / temperature).softmax(-1)
    rest = [i for i in range(OUTCOMES) if i not in probs.topk(HEAD).indices.tolist()]
    draws = torch.tensor(list(product(rest, repeat=number)))
    share = probs / probs[rest].sum()
    return draws, share[draws].prod(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_forward_kl_and_its_gradient_are_right_on_average_over_all_draws(
    temperature: float, number: int
) -> None:
    student, teacher = logits(0, (1, OUTCOMES)), logits(1, (1, OUTCOMES))
    draws, chance = all_draws(teacher[0], temperature, number)
    target = sampled(teacher[0], temperature, draws)
    repeated = student.repeat(len(draws), 1)
    options = {"temperature": temperature}
    assert torch.allclose(chance.sum(), torch.ones((), dtype=torch.float64))
    values = sparse_forward_kl(repeated, target, **options)
    assert torch.allclose((chance * values).sum(), forward_kl(student, teacher, **options)[0], atol=1e-12)
    slope = (chance[:, None] * slope_of(sparse_forward_kl, repeated, target, options)).sum(0)
    assert torch.allclose(slope, slope_of(forward_kl, student, teacher, options)[0], atol=1e-12)
    assert values.std() > 0.01


def test_the_head_alone_would_be_biased() -> None:
    """The control of the test above: the tail's draws are what makes it right."""
    student, teacher = logits(0, (1, OUTCOMES)), logits(1, (1, OUTCOMES))
    alone = sampled(teacher[0], 1.0, torch.zeros(1, 0, dtype=torch.int64))
    slope = slope_of(sparse_forward_kl, student, alone, {})
    assert (slope - slope_of(forward_kl, student, teacher, {})).abs().max() > 1e-2


@pytest.mark.parametrize("name", list(SPARSE_LOSSES))
@pytest.mark.parametrize("options", [{}, {"temperature_scaling": "none"}])
def test_the_analytic_gradient_is_that_of_autograd(name: str, options: dict[str, object]) -> None:
    teacher = logits(1, (1, OUTCOMES))[0]
    draws, _ = all_draws(teacher, 2.0, 2)
    target, student = sampled(teacher, 2.0, draws), logits(0, (len(draws), OUTCOMES))
    options = {"temperature": 2.0, **options}
    values, slope = SPARSE_SLOPES[name](TemperedLogits(student.clone()), target, **options)
    assert torch.allclose(values, SPARSE_LOSSES[name](student, target, **options), atol=1e-12)
    assert torch.allclose(slope, slope_of(SPARSE_LOSSES[name], student, target, options), atol=1e-12)
    leaf = student.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: SPARSE_LOSSES[name](s, target, **options), (leaf,))


def test_the_estimate_is_right_on_average_and_zero_where_nothing_was_drawn() -> None:
    teacher = logits(1, (1, OUTCOMES))[0]
    draws, chance = all_draws(teacher, 1.0, 2)
    probs = estimate(sampled(teacher, 1.0, draws), OUTCOMES + 2)
    assert torch.allclose(probs.sum(-1), torch.ones(len(draws), dtype=torch.float64))
    assert torch.allclose((chance[:, None] * probs).sum(0)[:OUTCOMES], teacher.softmax(-1), atol=1e-12)
    assert (probs[:, OUTCOMES:] == 0).all()


def test_the_tail_is_spread_evenly_over_what_the_vocabulary_has_beyond_the_head() -> None:
    teacher = logits(1, (1, OUTCOMES))[0]
    spread = sampled(teacher, 1.0, torch.zeros(1, 0, dtype=torch.int64)).spread(OUTCOMES + 2)[0].exp()
    probs = teacher.softmax(-1)
    head = probs.topk(HEAD).indices
    rest = torch.ones(OUTCOMES, dtype=torch.bool).scatter_(0, head, False)
    assert torch.allclose(spread[head], probs[head])
    assert torch.allclose(spread[:OUTCOMES][rest], probs[rest].mean().expand(OUTCOMES - HEAD))
    assert (spread[OUTCOMES:] == 0).all()


def test_half_precision_and_chosen_tokens_keep_their_distributions() -> None:
    teacher = logits(1, (1, OUTCOMES))[0]
    target = sampled(teacher, 1.0, all_draws(teacher, 1.0, 2)[0])
    chosen = target.rows(torch.tensor([3, 1]))
    assert torch.equal(chosen.ids, target.ids[[3, 1]])
    assert chosen.label_log_probs is None
    labelled = replace(target, label_log_probs=-torch.arange(len(target.ids)))
    assert labelled.rows(torch.tensor([3, 1])).label_log_probs.tolist() == [-3, -1]
    half = TopKTail(chosen.ids, chosen.log_probs.half(), chosen.tail.half(), chosen.entropy, 1.0, OUTCOMES)
    assert half.masses().dtype == torch.float32
    assert torch.allclose(half.masses().double(), chosen.masses(), rtol=1e-2)
