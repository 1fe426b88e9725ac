"""The plain PyTorch engine: a single process, or several with DDP."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.models.forward import autocast
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

    def forward(self, batch: AnyBatch, denominators: dict[str, float]) -> PlainOutput:
        """The loss, the term sums, and additional metrics."""
        with autocast(batch.input_ids.device, self.precision):
            output = self.step(batch, denominators)
        return output.loss, dict(output.sums), dict(output.measures)


class PlainEngine:
    """Plain PyTorch, with DDP for several processes; see ``protocols.Engine``."""

    def __init__(self, step: nn.Module, settings: TrainingConfig, processes: Processes) -> None:
        self.step = step
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

    def weights_were_loaded(self) -> None:
        """Do nothing: the optimizer updates the module's own tensors."""

    def close(self) -> None:
        self.processes.accelerator.free_memory()
