"""What a placed teacher holds, against the weights that a real one fetches while it runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from stlm_kd.teachers.footprint import PlacedTeacher
from stlm_kd.teachers.live import outer_layers
from stlm_kd.teachers.units import FetchedWeights
from tests.support.pico import pico_model


class Counted:
    """A unit that adds up what is fetched at once; released weights are empty."""

    now = most = 0

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.whole = [weight.data for weight in weights]
        self.size = sum(weight.nbytes for weight in self.whole)

    def fetch(self, device: torch.device) -> list[Tensor]:
        Counted.now += self.size
        Counted.most = max(Counted.most, Counted.now)
        return self.whole

    @property
    def resting(self) -> list[Tensor]:
        Counted.now -= self.size
        return [torch.empty(0).expand(0) for _ in self.whole]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("outer", [True, False], ids=["shard", "offload"])
def test_what_is_fetched_at_once_is_what_a_real_pass_fetches(family: str, outer: bool) -> None:
    model = pico_model(family, layers=3, vocabulary=300).eval().requires_grad_(False)
    teacher = PlacedTeacher.of("t", "shard" if outer else "offload", model)
    assert teacher.whole == sum(weight.nbytes for weight in model.parameters())
    FetchedWeights(model, Counted, without=[] if outer else outer_layers(model))
    Counted.now = Counted.most = 0
    model(torch.zeros(1, 4, dtype=torch.int64))
    assert Counted.now == 0
    assert Counted.most == teacher.held(2).running == (teacher.unit if outer else teacher.block)
