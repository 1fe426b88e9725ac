"""Peak bytes, which are the same in every run: N tokens, D width, V outcomes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from benchmarks.training import allocator
from stlm_kd.distillation.logit_terms import projected_losses
from stlm_kd.distillation.terms import Term
from stlm_kd.distillation.token_table import TokenTable
from stlm_kd.losses import GRADIENTS, LABELS, chunked
from stlm_kd.models.forward import Head
from stlm_kd.teachers import COMBINED
from stlm_kd.teachers.combination import TeacherMixture
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.targets import Dense

N, D, V = 512, 8, 2048
ONE_LOGITS = N * V * 4


def peak_bytes(loss: str, teachers: int, method: Literal["chunked", "dense"], how: str = "mean") -> int:
    """Of loss and gradient, beyond the inputs."""
    labels = torch.zeros(N, dtype=torch.int64)
    told = {f"{i}": Dense(torch.randn(N, D), Head(torch.randn(V, D), None), V) for i in range(teachers)}
    term = Term(loss, loss, teacher=None if loss == LABELS else COMBINED)
    mixing = TeacherMixture(Combination(how), tuple(told))
    rows = TokenTable([term], mixing, labels, [torch.ones(N, dtype=torch.bool)], told, V)
    hidden, weight = torch.randn(N, D).requires_grad_(), torch.randn(V, D).requires_grad_()

    def run() -> None:
        projected_losses(rows, hidden, Head(weight, None), [1.0], method=method)[0].backward()

    return allocator.peak_bytes(run)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the tokens, in blocks of a 128th."""
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", N // 8 * V)
    monkeypatch.setattr(chunked, "BLOCK_ELEMENTS", N // 128 * V)


@pytest.mark.parametrize("loss", list(GRADIENTS))
def test_chunks_never_hold_one_tensor_of_all_logits_and_dense_holds_several(loss: str) -> None:
    assert peak_bytes(loss, 1, "chunked") < 0.55 * ONE_LOGITS
    assert peak_bytes(loss, 1, "dense") > 3 * ONE_LOGITS


@pytest.mark.parametrize("how", ["mean", "entropy", "label-likelihood"])
def test_more_teachers_take_no_more_memory(how: str) -> None:
    """Beyond a few blocks for combining any number of them."""
    one, two, four = (peak_bytes("forward_kl", teachers, "chunked", how) for teachers in (1, 2, 4))
    assert four < 1.05 * two < 1.3 * one
