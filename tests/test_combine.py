from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.combine import COMBINERS, mean, weighted


def distributions(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    raw = 4 * torch.randn(count, 6, 9, generator=generator, dtype=torch.float64)
    return {f"t{i}": one.log_softmax(-1) for i, one in enumerate(raw)}


LABELS = torch.zeros(6, dtype=torch.int64)


def test_the_mean_is_taken_of_probabilities_and_not_of_logits() -> None:
    given_n = distributions(3)
    expected = torch.stack([one.exp() for one in given_n.values()]).mean(0)
    assert torch.allclose(mean(given_n, LABELS).exp(), expected, atol=1e-14)


@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=4), factor=st.floats(0.1, 10))
@settings(deadline=None, max_examples=20)
def test_only_the_ratios_of_weights_count(weights: list[float], factor: float) -> None:
    given_n = distributions(len(weights))
    named = {f"t{i}": w for i, w in enumerate(weights)}
    expected = sum(w * given_n[name].exp() for name, w in named.items()) / sum(weights)
    for scaled in (named, {name: factor * w for name, w in named.items()}):
        assert torch.allclose(weighted(given_n, LABELS, weights=scaled).exp(), expected, atol=1e-12)


def test_a_weight_of_zero_leaves_a_teacher_out() -> None:
    given_n = distributions(2)
    alone = weighted(given_n, LABELS, weights={"t0": 1.0, "t1": 0.0})
    assert torch.equal(alone, given_n["t0"])


@pytest.mark.parametrize("how", list(COMBINERS))
def test_a_mixture_is_a_distribution_even_where_one_teacher_rules_an_outcome_out(how: str) -> None:
    given_n = distributions(2)
    given_n["t0"][:, 3] = float("-inf")
    given_n["t0"] = given_n["t0"].log_softmax(-1)
    options = {"weights": {"t0": 1.0, "t1": 2.0}} if how == "weighted" else {}
    mixture = COMBINERS[how](given_n, LABELS, **options)
    assert torch.allclose(mixture.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    assert mixture[:, 3].isfinite().all()
