"""The plain PyTorch engine: a single process, or several with DDP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.forward import autocast
from stlm_kd.training.checkpoint import load_model_tensors, model_tensors
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.optimizer import (
    Pacing,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
    trainable_parameters,
)
from stlm_kd.training.processes import Processes
from stlm_kd.training.protocols import PlainOutput


class MicroBatch(nn.Module):
    """Wrapper that returns plain tensors: engines find the loss in tuples and dictionaries, not dataclasses.

    Enters autocast inside the engine, since DeepSpeed disables an outer autocast.
    """

    def __init__(self, step: nn.Module, precision: str) -> None:
        super().__init__()
        self.step = step
        self.precision = precision
        self.is_examining = False

    def forward(self, batch: AnyBatch, denominators: dict[str, float]) -> PlainOutput | list[str]:
        """The loss, the term sums, and additional metrics; or, examining, the step's ``not_finite``.

        The step's own hooks do not run: those of ZeRO 3 cannot handle its output.
        """
        with autocast(batch.input_ids.device, self.precision):
            if self.is_examining:
                found: list[str] = self.step.not_finite(batch)  # type: ignore[operator]  # a TrainStep
                return found
            output = self.step.forward(batch, denominators)
        return output.loss, dict(output.sums), dict(output.measures)


class WholeModule:
    """What engines have in common under which every process holds the whole module."""

    step: nn.Module
    processes: Processes
    precision: str
    needs_equal_forwards = False

    def evaluate(self, batch: AnyBatch, denominators: dict[str, float]) -> PlainOutput:
        found = MicroBatch(self.step, self.precision)(batch, denominators)
        assert isinstance(found, tuple)
        return found

    def not_finite(self, batch: AnyBatch) -> list[str]:
        with autocast(batch.input_ids.device, self.precision):
            found: list[str] = self.step.not_finite(batch)  # type: ignore[operator]  # a TrainStep
        return found

    def model_tensors(self) -> dict[str, Tensor]:
        self.processes.check_same(trainable_parameters(self.step))
        return model_tensors(self.step)

    def load_model_tensors(self, tensors: Mapping[str, Tensor], *, place: Path) -> None:
        load_model_tensors(self.step, tensors, place=place)

    def finish(self) -> None:
        """Do nothing: the module holds its weights."""


class PlainEngine(WholeModule):
    """Plain PyTorch, with DDP for several processes; see ``protocols.Engine``."""

    def __init__(self, step: nn.Module, settings: TrainingConfig, processes: Processes) -> None:
        self.step = step
        self.precision = settings.precision
        self.clip = settings.clip
        self.processes = processes
        self.model = processes.accelerator.prepare_model(MicroBatch(step, settings.precision))
        self.optimizer = make_optimizer(step, settings)
        self.pacing = Pacing(trainable_parameters(step), settings.paced)

    def begin_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        with nullcontext() if is_last else self.processes.accelerator.no_sync(self.model):
            loss, terms, measures = self.model(batch, denominators)
            self.processes.accelerator.backward(loss * self.processes.count)
        return loss.detach(), terms, measures

    def gradient_norm(self) -> Tensor:
        weights = trainable_parameters(self.step).values()
        self.norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        return self.norm

    def gradients_not_finite(self) -> list[str]:
        return [
            name
            for name, weight in trainable_parameters(self.step).items()
            if weight.grad is not None and not bool(torch.isfinite(weight.grad).all())
        ]

    def end_step(self, learning_rate: float) -> None:
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(trainable_parameters(self.step).values(), self.clip, self.norm)
        set_learning_rate(self.optimizer, learning_rate)
        with self.pacing.applied():
            self.optimizer.step()

    def optimizer_tensors(self) -> dict[str, Tensor]:
        return optimizer_tensors(self.optimizer, self.step)

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        load_optimizer_tensors(self.optimizer, self.step, tensors)

    def close(self) -> None:
        self.processes.accelerator.free_memory()
