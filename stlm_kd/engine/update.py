"""One optimizer step: count, forward and backward over the micro-batches, check, clip, step."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from stlm_kd.data.batch import Batch
from stlm_kd.engine.processes import Processes
from stlm_kd.engine.protocols import FitSettings, TrainStep
from stlm_kd.engine.signals import StopFlags
from stlm_kd.errors import NonFiniteError
from stlm_kd.optim import learning_rate, make_optimizer, set_learning_rate, trainable_parameters


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one optimizer step did, over all processes; ``losses`` are per valid token."""

    loss: float
    losses: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    stop: StopFlags


class _MicroBatch(nn.Module):
    """One forward as plain tensors: DDP finds the loss in tuples and dictionaries, not in dataclasses."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, batch: Batch, denominators: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
        output = self.step(batch, denominators)
        return output.loss, dict(output.sums)


class Updater:
    """Owns the optimizer; ``update`` changes the trained weights once.

    Args:
        step: Moved to the device of ``processes``.
        settings: How to train.
        processes: Who trains together.
    """

    def __init__(self, step: TrainStep, settings: FitSettings, processes: Processes) -> None:
        assert isinstance(step, nn.Module)
        self.step = step
        self.settings = settings
        self.processes = processes
        self.forward = processes.accelerator.prepare_model(_MicroBatch(step))
        self.optimizer = make_optimizer(
            step,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
        )

    def update(self, index: int, batches: Sequence[Batch], stop: StopFlags) -> UpdateReport:
        """Optimizer step ``index``, counted from 0.

        Raises:
            NonFiniteError: a loss or gradient is NaN or infinite; the weights are as before.
        """
        counts, tokens = self._counts(batches)
        seed_everything(self.settings.seed, index, self.processes.rank)
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._backward(batches, {name: float(max(count, 1)) for name, count in counts.items()}, stop)
        weights = list(trainable_parameters(self.step).values())
        norm = nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        values = torch.cat([sums, norm.to(sums).reshape(1)]).tolist()  # the one wait for the device
        loss, interrupts, preemptions, *totals, grad_norm = values
        losses = {name: total / max(counts[name], 1) for name, total in zip(counts, totals, strict=True)}
        self._check_finite(index, loss, losses, grad_norm)
        if self.settings.clip is not None:
            nn.utils.clip_grads_with_norm_(weights, self.settings.clip, norm)
        rate = self._learning_rate(index)
        set_learning_rate(self.optimizer, rate)
        self.optimizer.step()
        return UpdateReport(loss, losses, rate, grad_norm, tokens, (interrupts, preemptions))

    def _counts(self, batches: Sequence[Batch]) -> tuple[dict[str, int], int]:
        """The valid tokens per term and the tokens in all, over all micro-batches and processes."""
        assert batches, "an optimizer step without a micro-batch"
        each = [self.step.count(batch) for batch in batches]
        names = list(each[0])
        local = [sum(counts[name] for counts in each) for name in names]
        tokens = sum(batch.num_tokens() for batch in batches)
        *totals, all_tokens, micro_batches = self.processes.sum_numbers([*local, tokens, len(batches)])
        assert micro_batches == len(batches) * self.processes.count, "processes differ in their micro-batches"
        return {name: int(total) for name, total in zip(names, totals, strict=True)}, int(all_tokens)

    def _backward(self, batches: Sequence[Batch], denominators: dict[str, float], stop: StopFlags) -> Tensor:
        """Accumulate the gradients; loss, stop flags and the terms' sums over all processes, on the device.

        The denominators are global, so gradients only have to be added up: over micro-batches they are, and
        over processes DDP divides by their number, which is multiplied back here.
        """
        device, float_type = self.processes.device, self.processes.float_type
        sums = torch.tensor([0.0, *stop, *[0.0] * len(denominators)], dtype=float_type, device=device)
        for position, batch in enumerate(batches):
            is_last = position == len(batches) - 1
            with nullcontext() if is_last else self.processes.accelerator.no_sync(self.forward):
                with autocast(device, self.settings.precision):
                    loss, terms = self.forward(batch.to(device), denominators)
                self.processes.accelerator.backward(loss * self.processes.count)
            zero = loss.new_zeros(())
            parts = [loss, zero, zero, *(terms[name] for name in denominators)]
            sums += torch.stack([part.detach().to(sums).reshape(()) for part in parts])
        return self.processes.sum(sums)

    def _learning_rate(self, index: int) -> float:
        return learning_rate(
            index,
            peak=self.settings.learning_rate,
            schedule=self.settings.schedule,
            steps=self.settings.steps,
            warmup=self.settings.warmup,
        )

    def _check_finite(self, index: int, loss: float, losses: Mapping[str, float], grad_norm: float) -> None:
        values = {"loss": loss, **losses, "gradient norm": grad_norm}
        if all(math.isfinite(value) for value in values.values()):
            return
        found = ", ".join(f"{name} {value:g}" for name, value in values.items())
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        where = [
            name
            for name, weight in trainable_parameters(self.step).items()
            if weight.grad is not None and not bool(torch.isfinite(weight.grad).all())
        ]
        culprits = (
            f"; gradients not finite: {', '.join(where[:3])}{' …' if len(where) > 3 else ''}" if where else ""
        )
        raise NonFiniteError(
            f"step {index + 1}: {', '.join(bad)} not finite ({found}{culprits}); stopped before the weights "
            "changed, the last checkpoint is kept. A smaller learning rate, clipping or fp32 may help"
        )


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context of a forward pass: bf16 where asked for; it does nothing for fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def seed_everything(seed: int, index: int, rank: int) -> None:
    """Seed the global generators for one optimizer step, differently for each step and process.

    Dropout is then a function of (seed, step, process): a resumed run draws what an uninterrupted one draws,
    and neither validation nor whatever ran before can shift it.
    """
    words = np.random.SeedSequence([seed, index, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
