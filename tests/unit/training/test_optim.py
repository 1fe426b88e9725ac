import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from stlm_kd.training.config import Schedule, TrainingConfig
from stlm_kd.training.optimizer import (
    decayed_names,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from tests.support.pico import pico_model


def optimizer_of(
    module: nn.Module, weight_decay: float = 0.1, *, bias_correction: bool = True
) -> torch.optim.Optimizer:
    settings = TrainingConfig(
        learning_rate=0.01, weight_decay=weight_decay, betas=(0.9, 0.95), bias_correction=bias_correction
    )
    return make_optimizer(module, settings)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [1 / 3, 2 / 3, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(8))]),
    ],
)
def test_schedule_agrees_with_a_calculation_by_hand(schedule: Schedule, expected: list[float]) -> None:
    config = TrainingConfig(10, 2.0, schedule=schedule, warmup=0.2)
    rates = [config.learning_rate_at(step) / 2 for step in range(10)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_cosine_without_warm_up_agrees_with_transformers() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, 20)
    config = TrainingConfig(20, 0.3, schedule="cosine", warmup=0)
    for step in range(20):
        expected = optimizer.param_groups[0]["lr"]
        assert config.learning_rate_at(step) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(get_args(Schedule)), st.integers(1, 500), st.floats(0, 1), st.data())
def test_every_step_learns_and_none_exceeds_the_peak(
    schedule: Schedule, steps: int, warmup: float, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    config = TrainingConfig(steps, 0.1, schedule=schedule, warmup=warmup)
    assert 0 < config.learning_rate_at(step) <= 0.1


def test_norms_biases_and_vectors_do_not_decay() -> None:
    names = decayed_names(pico_model("llama", layers=1, tied=True))
    assert names == {
        "model.embed_tokens.weight",
        *(f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkvo"),
        *(f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    }


def test_a_norm_with_a_matrix_does_not_decay_and_frozen_weights_are_left_out() -> None:
    module = nn.ModuleDict({"norm": nn.LayerNorm((2, 3)), "a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    module["b"].requires_grad_(False)
    assert decayed_names(module) == {"a.weight"}
    assert sum(len(group["params"]) for group in optimizer_of(module).param_groups) == 4


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_and_bert_adam_agree_with_their_equations(corrected: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(3, 2).double()
    optimizer = optimizer_of(layer, weight_decay=0.1, bias_correction=corrected)
    expected = {name: weight.detach().numpy().copy() for name, weight in layer.named_parameters()}
    first = {name: np.zeros_like(value) for name, value in expected.items()}
    second = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 6):
        rate = 0.01 / step
        set_learning_rate(optimizer, rate)
        for name, weight in layer.named_parameters():
            gradient = np.cos(np.arange(weight.numel()) + step).reshape(weight.shape)
            weight.grad = torch.from_numpy(gradient.copy())
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            decay = 0.1 if name == "weight" else 0.0
            expected[name] *= 1 - rate * decay
            missing = (0.9**step, 0.95**step) if corrected else (0.0, 0.0)
            scale = np.sqrt(second[name] / (1 - missing[1])) + 1e-8
            expected[name] -= rate * (first[name] / (1 - missing[0])) / scale
        optimizer.step()
    for name, weight in layer.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), expected[name], rtol=0, atol=1e-14)


def train_once(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module.a(torch.ones(1, 2)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("corrected", [True, False])
def test_optimizer_state_moves_by_name_and_skips_what_had_no_gradient(corrected: bool) -> None:
    torch.manual_seed(0)
    module, other = (nn.ModuleDict({"idle": nn.Linear(2, 2), "a": nn.Linear(2, 2)}) for _ in range(2))
    optimizer = optimizer_of(module, bias_correction=corrected)
    train_once(module, optimizer)
    tensors = optimizer_tensors(optimizer, module)
    assert set(tensors) == {
        f"a.{w}/{k}" for w in ("weight", "bias") for k in ("step", "exp_avg", "exp_avg_sq")
    }

    other.load_state_dict(module.state_dict())
    resumed = optimizer_of(other, bias_correction=corrected)
    load_optimizer_tensors(resumed, other, tensors)
    train_once(module, optimizer)
    train_once(other, resumed)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())
