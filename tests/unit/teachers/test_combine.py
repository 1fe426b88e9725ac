from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stlm_kd.data.batch import IGNORED
from stlm_kd.losses import TemperedLogits
from stlm_kd.teachers.combination import (
    COMBINERS,
    Domains,
    TeacherMixture,
    active_teachers,
    mixture,
    routing_draws,
    weighting_features,
)
from stlm_kd.teachers.combination.mixture import Combination

Options = dict[str, Any]
N, V = 6, 9
NAMES = ("a", "b", "c")
DOMAINS = ("news", "prose", "news")
TABLE = {"news": {"a": 1.0, "b": 3.0, "c": 0.0}, "prose": {"a": 0.0, "b": 0.0, "c": 2.0}}
LABELS = torch.tensor([0, 3, IGNORED, 8, 3, 1])
OF_ROWS = torch.tensor([0, 1, 2, 2, 1, 0])
DRAWN = torch.tensor([0.0, 0.34, 0.99, 0.5, 0.67, 0.2])
GATE = torch.arange(18.0).reshape(N, 3).sin().double()
WAYS: list[tuple[str, Options]] = [
    ("mean", {}),
    ("weighted", {"weights": {"a": 0.5, "b": 0.0, "c": 2.0}}),
    ("domains", {"weights": TABLE}),
    ("confidence", {"sharpness": 2.0}),
    ("entropy", {"sharpness": 0.5}),
    ("label-likelihood", {"sharpness": 1.5}),
    ("annealed", {"first": "a", "last": "c", "begin": 0.2, "end": 0.7}),
    ("random", {"per": "batch"}),
    ("random", {"per": "sequence"}),
    ("learned", {}),
]
ways = pytest.mark.parametrize(("how", "options"), WAYS, ids=[how for how, _ in WAYS])


def distributions(seed: int = 0, spread: float = 3.0) -> list[Tensor]:
    raw = spread * torch.randn(3, N, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw[0, :, 5] = -torch.inf  # which one of them rules out
    return [one.log_softmax(-1) for one in raw]


def mixing_of(how: str, options: Options, progress: float = 0.4) -> TeacherMixture:
    return TeacherMixture(
        Combination(how, options), NAMES, progress, domains=DOMAINS, domain=OF_ROWS, drawn=DRAWN, gate=GATE
    )


def weights_of(mixing: TeacherMixture, log_probs: list[Tensor], labels: Tensor = LABELS) -> Tensor:
    told = weighting_features([TemperedLogits(one.clone()) for one in log_probs], labels, mixing.needs, 1.0)
    return mixing.weights(told, labels, like=log_probs[0])


def by_hand(how: str, options: Options, log_probs: list[Tensor], n: int, progress: float) -> list[float]:
    """One token's weights, number by number."""
    p = [[math.exp(value) for value in one[n].tolist()] for one in log_probs]
    if how == "mean":
        raw = [1.0, 1.0, 1.0]
    elif how == "weighted":
        raw = [options["weights"][name] for name in NAMES]
    elif how == "domains":
        raw = [options["weights"][DOMAINS[int(OF_ROWS[n])]][name] for name in NAMES]
    elif how == "confidence":
        raw = [max(one) ** options["sharpness"] for one in p]
    elif how == "entropy":
        raw = [math.prod(value ** (options["sharpness"] * value) for value in one if value) for one in p]
    elif how == "label-likelihood":
        label = int(LABELS[n])
        raw = [1.0 if label == IGNORED else one[label] ** options["sharpness"] for one in p]
    elif how == "annealed":
        done = min(max((progress - 0.2) / 0.5, 0.0), 1.0)
        raw = [1 - done, 0.0, done]
    elif how == "learned":
        raw = [math.exp(value) for value in GATE[n].tolist()]
    else:
        raw = [float(i <= 3 * float(DRAWN[n]) < i + 1) for i in range(3)]
    return [value / sum(raw) for value in raw]


@ways
@given(seed=st.integers(0, 10_000), progress=st.floats(0, 1))
@settings(deadline=None, max_examples=10)
def test_weights_are_those_of_the_plain_formula(
    how: str, options: Options, seed: int, progress: float
) -> None:
    log_probs = distributions(seed)
    found = weights_of(mixing_of(how, options, progress), log_probs)
    expected = torch.tensor([by_hand(how, options, log_probs, n, progress) for n in range(N)])
    assert torch.allclose(found, expected.double(), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(N, dtype=torch.float64))


def test_every_way_to_combine_is_compared_with_a_plain_formula() -> None:
    assert {how for how, _ in WAYS} == set(COMBINERS)


@given(weights=st.lists(st.floats(0.01, 100), min_size=3, max_size=3))
@settings(deadline=None, max_examples=10)
def test_the_mixture_is_of_probabilities_and_not_of_logits(weights: list[float]) -> None:
    log_probs = dict(zip(NAMES, distributions(), strict=True))
    shares = torch.tensor(weights).double().div(sum(weights)).expand(N, 3)
    mixed = mixture(log_probs, shares).exp()
    expected = sum(w * log_probs[n].exp() for w, n in zip(shares[0], NAMES, strict=True))
    assert torch.allclose(mixed, expected, atol=1e-13)
    assert (mixed[:, 5] > 0).all()  # one teacher's veto is not the mixture's


def test_a_weight_of_zero_leaves_a_teacher_out_exactly() -> None:
    log_probs = dict(zip(NAMES, distributions(), strict=True))
    assert torch.equal(mixture(log_probs, torch.tensor([0.0, 1.0, 0.0]).expand(N, 3)), log_probs["b"])


def test_where_no_teacher_allows_the_label_all_weigh_the_same() -> None:
    log_probs = [distributions()[0]] * 3
    found = weights_of(mixing_of("label-likelihood", {}), log_probs, torch.full((N,), 5))
    assert torch.allclose(found, torch.full((N, 3), 1 / 3).double())


def test_the_teachers_that_are_left_of_a_domain_share_its_weight() -> None:
    mixing = TeacherMixture(
        Combination("domains", {"weights": TABLE}), ("a", "b"), domains=DOMAINS, domain=OF_ROWS
    )
    found = weights_of(mixing, distributions()[:2])
    assert found[0].tolist() == [0.25, 0.75]
    assert found[1].tolist() == [0.5, 0.5]  # both weigh nothing there


def present(how: str, options: Options, dropout: float = 0.0, steps: int = 400) -> list[tuple[str, ...]]:
    combination = Combination(how, options, dropout, seed=3)
    return [active_teachers(combination, NAMES, index=i, progress=i / steps) for i in range(steps)]


def test_teachers_that_weigh_nothing_in_a_step_are_not_of_its_mixture() -> None:
    assert set(present("weighted", {"weights": {"a": 1, "b": 0, "c": 2}})) == {("a", "c")}
    assert present("annealed", {"first": "b", "last": "c", "begin": 0.25, "end": 0.75}, steps=8) == [
        *[("b",)] * 3, *[("b", "c")] * 3, *[("c",)] * 2
    ]  # fmt: skip
    assert set(present("domains", {"weights": TABLE})) == {NAMES}


def test_each_teacher_comes_as_often_and_alone_where_one_is_drawn_for_a_batch() -> None:
    found = present("random", {"per": "batch"})
    assert {len(names) for names in found} == {1}
    assert all(abs(found.count((name,)) / 400 - 1 / 3) < 0.08 for name in NAMES)
    assert set(present("random", {"per": "sequence"})) == {NAMES}


def test_dropout_leaves_each_teacher_out_as_often_as_it_says_and_never_all() -> None:
    found = present("mean", {}, dropout=0.5)
    assert all(found)
    # One of three alone is out with probability 1/2, but a third of the time it is the one that is put back.
    for name in NAMES:
        assert abs(sum(name in names for names in found) / 400 - (0.5 + 0.125 / 3)) < 0.08


@given(chosen=st.sets(st.integers(0, 40), min_size=1))
@settings(deadline=None, max_examples=10)
def test_a_rows_draw_depends_on_seed_step_and_row_alone(chosen: set[int]) -> None:
    combination = Combination("random", {"per": "sequence"}, seed=3)
    rows = torch.tensor(sorted(chosen))
    every = routing_draws(combination, torch.arange(41), index=7)
    assert torch.equal(routing_draws(combination, rows, index=7), every[rows])
    others = (routing_draws(combination, torch.arange(41), index=8), every.flip(0))
    assert not any(torch.equal(other, every) for other in others)
    assert len(every.unique()) == 41


def test_rows_are_numbered_source_after_source() -> None:
    domains = Domains(("news", "prose", "news"), (2, 1, 4))
    assert domains.of(torch.arange(7)).tolist() == [0, 0, 1, 2, 2, 2, 2]
