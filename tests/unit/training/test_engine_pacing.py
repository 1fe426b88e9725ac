"""Rows with a learning rate of their own, against rows that are parameters of their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from stlm_kd.training import RowScale, TrainingConfig
from tests.support.engine_pico import VOCABULARY, PicoBatches, PicoStep, pico_fit

OLD, NEW = (0, 2, 3, 9), (1, 4, 5, 6, 7, 8, 10, 11, 12)
PLAN = TrainingConfig(steps=6, learning_rate=1e-2, weight_decay=0.5, clip=0.3, log_every=1)
DECAYS = {"embedding.weight": 0.5, "head.weight": 0.5, "head.bias": 0.0, "norm.weight": 0.0, "norm.bias": 0.0}


def paced(pace: float, *weights: str) -> TrainingConfig:
    return replace(PLAN, paced=tuple(RowScale(weight, OLD, pace) for weight in weights))


def trained_in_parts(*, tied: bool, pace: float) -> dict[str, Tensor]:
    """By PyTorch's own optimizer, for which a weight's old rows are one parameter and the others another."""
    step = PicoStep(dtype=torch.float64)
    rowed = ["embedding.weight", "head.bias"] + ([] if tied else ["head.weight"])
    named = {n: w for n, w in step.named_parameters() if n in DECAYS and (n != "head.weight" or not tied)}
    parts = {
        name: [nn.Parameter(w[list(rows)].detach().clone()) for rows in (OLD, NEW)]
        if name in rowed
        else [nn.Parameter(w.detach().clone())]
        for name, w in named.items()
    }
    groups = [
        {"params": [part], "weight_decay": DECAYS[name], "pace": pace if name in rowed and i == 0 else 1.0}
        for name, several in parts.items()
        for i, part in enumerate(several)
    ]
    optimizer = torch.optim.AdamW(groups, betas=PLAN.betas, eps=PLAN.eps)
    for index in range(PLAN.steps):
        (batch,) = PicoBatches().step(index)
        weights = {name: whole(several) for name, several in parts.items()}
        weights |= {"head.weight": weights["embedding.weight"]} if tied else {}
        counts = {name: float(count) for name, count in step.count(batch).items()}
        optimizer.zero_grad()
        functional_call(step, weights, (batch, counts)).loss.backward()
        nn.utils.clip_grad_norm_([part for group in groups for part in group["params"]], PLAN.clip)
        rate = PLAN.learning_rate_at(index)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        optimizer.step()
    return {name: whole(several) for name, several in parts.items()}


def whole(parts: Sequence[Tensor]) -> Tensor:
    """The rows in their places again."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(list(parts))[torch.tensor([*OLD, *NEW]).argsort()]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pace", [0.0, 0.2, 3.0])
def test_rows_move_as_parameters_with_a_learning_rate_of_their_own_do(
    tied: bool, pace: float, tmp_path: Path
) -> None:
    step = PicoStep(dtype=torch.float64)
    before = step.embedding.weight.detach().clone()
    if tied:
        step.head.weight = step.embedding.weight
    names = ["embedding.weight", "head.bias"] + ([] if tied else ["head.weight"])
    pico_fit(step, tmp_path, paced(pace, *names), batches=PicoBatches(micro_batch=2), validates=False)
    expected = trained_in_parts(tied=tied, pace=pace)
    for name, weight in expected.items():
        torch.testing.assert_close(step.get_parameter(name).detach(), weight.detach(), rtol=1e-9, atol=1e-12)
    moved = (step.embedding.weight != before).any(1)
    assert moved.tolist() == [pace > 0 or row not in OLD for row in range(VOCABULARY)]


def test_rows_of_pace_0_keep_every_bit(tmp_path: Path) -> None:
    step = PicoStep()
    step.embedding.weight.data[2] = -0.0
    before = step.embedding.weight.detach().clone().view(torch.int32)
    pico_fit(step, tmp_path, paced(0.0, "embedding.weight"), validates=False)
    assert torch.equal(step.embedding.weight.detach().view(torch.int32)[list(OLD)], before[list(OLD)])
