"""Losses against teachers that are combined: by chunks, whole, from stored targets, after interventions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.data.batch import IGNORED
from stlm_kd.distillation.logit_terms import projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.losses import (
    LOSSES,
    FullDistribution,
    TargetMixture,
    TopKTail,
    chunked,
    forward_kl,
    sparse_forward_kl,
)
from stlm_kd.models.forward import Head
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.targets import Dense, Distribution, Logits
from tests.support.loss_checks import logits, slope_of
from tests.unit.teachers.test_combine import WAYS, Options

N, V = 37, 61
NAMES = ("a", "b", "c")


def normal(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


HIDDEN, HEAD = normal(0, N, 7), Head(normal(1, V, 7), normal(2, V))
TEACHERS: dict[str, Distribution] = {
    "a": Dense(normal(4, N, 5), Head(normal(5, V, 5), normal(6, V)), V),
    "b": Dense(normal(7, N, 6), Head(normal(8, V + 3, 6), None), 55),
    "c": Logits(normal(9, N, V, scale=2.0)),
}
LABELS_N = torch.randint(0, 55, (N,), generator=torch.Generator().manual_seed(3)).masked_fill(
    normal(10, N) > 0.8, IGNORED
)
SOME, EVERY = normal(11, N) > -0.5, torch.ones(N, dtype=torch.bool)


def mixing_of(how: str, options: Options) -> TeacherMixture:
    draws = torch.rand(N, generator=torch.Generator().manual_seed(1))
    return TeacherMixture(
        Combination(how, options),
        NAMES,
        0.4,
        domains=("news", "prose"),
        domain=torch.arange(N) % 2,
        drawn=draws,
        gate=normal(12, N, 3),
    )


def found(rows: TokenTable, method: str) -> list[Tensor]:
    leaves = [part.clone().requires_grad_() for part in (HIDDEN, HEAD.weight)]
    total, sums = projected_losses(
        rows, leaves[0], Head(leaves[1], HEAD.bias), [0.3] * len(rows.terms), method=method
    )
    total.backward()
    return [total.detach(), sums, *(leaf.grad for leaf in leaves)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of sixteen tokens or fewer, in blocks of four."""
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 16 * V)
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", 4 * V)


@pytest.mark.parametrize(("how", "options"), WAYS)
def test_chunks_equal_one_plain_mixture_under_autograd(how: str, options: Options) -> None:
    """Two losses at two temperatures, on tokens of their own, some of them without a label."""
    mixing = mixing_of(how, options)
    terms = [
        Term("kl", "forward_kl", teacher=COMBINED, options={"temperature": 2.0}),
        Term("js", "jensen_shannon", teacher=COMBINED),
    ]
    rows = TokenTable(terms, mixing, LABELS_N, [SOME, EVERY], TEACHERS, V)
    leaves = [part.clone().requires_grad_() for part in (HIDDEN, HEAD.weight)]
    own = functional.linear(leaves[0], leaves[1], HEAD.bias)
    expected = own.new_zeros(())
    for term, mask in zip(terms, rows.masks, strict=True):
        told = [TEACHERS[n].logits(slice(0, None), V).div(term.temperature).log_softmax(-1) for n in NAMES]
        weights = plain_weights(mixing, told)
        mixed = sum(w[:, None] * one.exp() for w, one in zip(weights.unbind(-1), told, strict=True))
        values = LOSSES[term.loss](own, term.temperature * mixed.log(), **term.options)
        expected = expected + 0.3 * values[mask].sum()
    expected.backward()
    for method in ("chunked", "dense"):
        total, _, *slopes = found(rows, method)
        assert torch.allclose(total, expected.detach(), rtol=1e-10)
        for slope, leaf in zip(slopes, leaves, strict=True):
            assert torch.allclose(slope, leaf.grad, atol=1e-9)


def plain_weights(mixing: TeacherMixture, told: list[Tensor]) -> Tensor:
    """From the distributions of all tokens at once."""
    how, options = mixing.combination.how, mixing.combination.options
    p = torch.stack(told, 1).exp()
    if how == "confidence":
        raw = p.amax(-1) ** options["sharpness"]
    elif how == "entropy":
        raw = (options["sharpness"] * p.xlogy(p).sum(-1)).exp()
    elif how == "label-likelihood":
        right = p.gather(-1, LABELS_N.clamp(min=0)[:, None, None].expand(-1, 3, 1)).squeeze(-1)
        raw = torch.where(LABELS_N[:, None] == IGNORED, torch.ones_like(right), right ** options["sharpness"])
    elif how == "random":
        raw = functional.one_hot((3 * mixing.drawn).long(), 3).double()
    elif how == "domains":
        table = [[options["weights"][domain][name] for name in NAMES] for domain in mixing.domains]
        raw = torch.tensor(table).double()[mixing.domain]
    elif how == "learned":
        raw = mixing.gate.exp()
    else:
        fixed = {"mean": [1, 1, 1], "annealed": [0.6, 0, 0.4]}.get(how) or [
            options["weights"][name] for name in NAMES
        ]
        raw = torch.tensor(fixed, dtype=torch.float64).expand(N, 3)
    return raw / raw.sum(-1, keepdim=True)


def stored(log: Tensor, temperature: float, labels: Tensor, head: int) -> TopKTail:
    top = log.topk(head)
    tail = (1 - top.values.exp().sum(-1)).clamp(min=0).log()
    entropy = torch.special.entr(log.exp()).sum(-1)
    right = log.gather(-1, labels.clamp(min=0)[:, None]).squeeze(-1)
    return TopKTail(top.indices, top.values, tail, entropy, temperature, V, right)


@pytest.mark.parametrize(("how", "options"), WAYS)
@pytest.mark.parametrize("kept", [("a", "b", "c"), ("b",)], ids=["all stored", "one stored"])
def test_stored_targets_that_hold_everything_combine_as_the_live_ones(
    how: str, options: Options, kept: tuple[str, ...]
) -> None:
    terms = [
        Term("kl", "forward_kl", teacher=COMBINED, options={"temperature": 2.0}),
        Term("rkl", "reverse_kl", teacher=COMBINED, options={"temperature": 2.0}),
    ]
    rows = TokenTable(terms, mixing_of(how, options), LABELS_N, [SOME, EVERY], TEACHERS, V)
    whole = {n: TEACHERS[n].logits(slice(0, None), V).div(2).log_softmax(-1) for n in NAMES}
    known = {n: stored(whole[n], 2.0, LABELS_N, V) for n in kept}
    _, sums, *slopes = found(replace(rows, teachers={**TEACHERS, **known}), "chunked")
    _, live, *expected = found(rows, "chunked")
    assert all(torch.allclose(one, two, atol=1e-9) for one, two in zip(slopes, expected, strict=True))
    assert torch.allclose(sums[1], live[1], rtol=1e-9)
    q = functional.linear(HIDDEN, HEAD.weight, HEAD.bias)
    weights = plain_weights(mixing_of(how, options), [whole[n] for n in NAMES])
    each = torch.stack([forward_kl(q, 2 * whole[n], temperature=2.0) for n in NAMES], dim=-1)
    counted = (weights * each).sum(-1)[SOME]
    assert torch.allclose(sums[0], counted.sum())  # Σ w KL(p || q) has the gradient of KL(Σ w p || q)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("live", [False, True], ids=["both stored", "one stored"])
def test_a_mixture_of_draws_has_the_right_gradient_on_average(number: int, live: bool) -> None:
    """Over all draws of two teachers' tails, or of one's; its value is Σ w KL(p || q)."""
    outcomes, head = 5, 2
    student = logits(0, (1, outcomes))
    teachers = [logits(seed, (1, outcomes))[0].log_softmax(-1) for seed in (1, 2)]
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    draws, chances = zip(*(all_draws(one, number, head) for one in teachers), strict=True)
    pairs = list(product(range(len(draws[0])), range(len(draws[1]))))
    chance = torch.stack([chances[0][i] * chances[1][j] for i, j in pairs])
    picked = [own[[pair[k] for pair in pairs]] for k, own in enumerate(draws)]
    targets: list[TopKTail | FullDistribution] = [
        drawn(one, own, head) for one, own in zip(teachers, picked, strict=True)
    ]
    if live:
        targets[1] = FullDistribution(teachers[1].expand(len(pairs), -1), 1.0)
    target = TargetMixture(targets, weights.expand(len(pairs), 2))
    repeated = student.repeat(len(pairs), 1)
    mixed = sum(w * one.exp() for w, one in zip(weights, teachers, strict=True)).log()[None]
    slope = (chance[:, None] * slope_of(sparse_forward_kl, repeated, target, {})).sum(0)
    assert torch.allclose(slope, slope_of(forward_kl, student, mixed, {})[0], atol=1e-12)
    value = (chance * sparse_forward_kl(repeated, target)).sum()
    each = [w * forward_kl(student, one[None])[0] for w, one in zip(weights, teachers, strict=True)]
    assert torch.allclose(value, sum(each), atol=1e-12)


def all_draws(log: Tensor, number: int, head: int) -> tuple[Tensor, Tensor]:
    """Every outcome of so many draws from the tail, and its probability."""
    rest = [i for i in range(len(log)) if i not in log.topk(head).indices.tolist()]
    draws = torch.tensor(list(product(rest, repeat=number)))
    return draws, (log.exp() / log.exp()[rest].sum())[draws].prod(-1)


def drawn(log: Tensor, draws: Tensor, head: int) -> TopKTail:
    top, every = log.topk(head), len(draws)
    ids = torch.cat([top.indices.expand(every, -1), draws], dim=-1)
    tail = torch.log1p(-top.values.exp().sum()).expand(every)
    entropy = torch.special.entr(log.exp()).sum().expand(every)
    return TopKTail(ids, top.values.expand(every, -1), tail, entropy, 1.0, len(log))


@pytest.mark.parametrize("how", ["confidence", "entropy", "label-likelihood"])
def test_what_is_said_after_an_intervention_is_weighed_as_what_was_said_before_it(how: str) -> None:
    after: Mapping[str, Distribution] = {n: Logits(normal(20 + i, N, V)) for i, n in enumerate(NAMES)}
    term = Term("kl", "forward_kl", teacher=COMBINED)
    rows = TokenTable([term], mixing_of(how, {}), LABELS_N, [EVERY], after, V, weighting_targets=TEACHERS)
    said = [after[n].logits(slice(0, None), V).log_softmax(-1) for n in NAMES]
    before = [TEACHERS[n].logits(slice(0, None), V).log_softmax(-1) for n in NAMES]
    weights = plain_weights(mixing_of(how, {"sharpness": 1.0}), before)
    mixed = sum(w[:, None] * one.exp() for w, one in zip(weights.unbind(-1), said, strict=True))
    own = functional.linear(HIDDEN, HEAD.weight, HEAD.bias)
    for method in ("chunked", "dense"):
        assert torch.allclose(found(rows, method)[1][0], forward_kl(own, mixed.log()).sum(), rtol=1e-10)


def test_a_target_stored_without_its_labels_cannot_be_weighed_by_them() -> None:
    known = stored(TEACHERS["c"].logits(slice(0, None), V).log_softmax(-1), 1.0, LABELS_N, 4)
    term = Term("kl", "forward_kl", teacher=COMBINED)
    told = {**TEACHERS, "c": replace(known, label_log_probs=None)}
    with pytest.raises(ValueError, match="without label log-prob"):
        found(TokenTable([term], mixing_of("label-likelihood", {}), LABELS_N, [EVERY], told, V), "chunked")
