"""What one optimizer step seeds: dropout differs by seed, step and process, and by nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stlm_kd.training import TrainingConfig
from stlm_kd.training.optimizer_step import Updater
from stlm_kd.training.signals import StopSignals
from tests.support.engine_pico import PicoStep, pico_rows

GENERATORS = {
    "torch": lambda: torch.rand(1).item(),
    "numpy": lambda: float(np.random.rand()),  # libraries draw from the global one
    "random": random.random,
}


@dataclass
class NotingEngine:
    """Draws a number from a global generator in each forward, and moves nothing."""

    step: PicoStep
    generator: str
    drawn: list[float] = field(default_factory=list)

    def begin_step(self) -> None:
        pass

    def accumulate(self, batch: Any, denominators: dict[str, float], *, is_last: bool) -> Any:
        self.drawn.append(GENERATORS[self.generator]())
        output = self.step(batch, denominators)
        return output.loss, output.sums, output.measures

    def gradient_norm(self) -> Tensor:
        return torch.zeros(())

    def end_step(self, learning_rate: float) -> None:
        pass


def drawn(generator: str, *, seed: int = 0, index: int = 0, rank: int = 0, before: int = 0) -> list[float]:
    """The numbers of two micro-batches of an optimizer step of a process."""
    for _ in range(before):
        GENERATORS[generator]()
    step = PicoStep()
    engine = NotingEngine(step, generator)
    processes = SimpleNamespace(
        rank=rank, count=1, device=torch.device("cpu"), float_type=torch.float64,
        sum=lambda values: values, sum_numbers=lambda values: [float(value) for value in values],
    )  # fmt: skip
    updater = Updater(step, TrainingConfig(9, 1e-2, seed=seed), processes, engine, StopSignals())  # type: ignore[arg-type]  # stand-ins
    updater.update(index, [pico_rows(2, 0), pico_rows(2, 1)])
    return engine.drawn


@pytest.mark.parametrize("generator", GENERATORS)
def test_each_seed_step_and_process_draws_its_own(generator: str) -> None:
    cases = [{}, {"seed": 1}, {"index": 1}, {"rank": 1}, {"rank": 2}, {"index": 1, "rank": 1}]
    numbers = [number for case in cases for number in drawn(generator, **case)]
    assert len(set(numbers)) == 2 * len(cases)


@pytest.mark.parametrize("generator", GENERATORS)
def test_what_was_drawn_before_shifts_nothing(generator: str) -> None:
    assert drawn(generator, rank=1, before=7) == drawn(generator, rank=1)
