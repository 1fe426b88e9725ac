"""One optimizer step: count, forward and backward over the micro-batches, check, clip, step."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn

from stlm_kd.activity import advanced
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import NonFiniteError
from stlm_kd.training.checkpoint import persistent_buffers
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.deadline import Deadline
from stlm_kd.training.processes import Processes
from stlm_kd.training.protocols import Engine, MeanMetric, TrainStep
from stlm_kd.training.signals import StopFlags, StopSignals


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """Results of one step, over all processes: ``losses`` per valid token, ``measures`` as means."""

    loss: float
    losses: Mapping[str, float]
    measures: Mapping[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    stop: StopFlags


@dataclass(frozen=True, slots=True)
class Updater:
    """Performs optimizer steps: counts tokens, checks for finite values, reports losses."""

    step: TrainStep
    settings: TrainingConfig
    processes: Processes
    engine: Engine
    signals: StopSignals

    def update(self, index: int, batches: Sequence[AnyBatch]) -> UpdateReport | StopFlags:
        """Perform step ``index`` (from 0); on a ``NonFiniteError`` the weights are unchanged.

        They are so also where SIGTERM leaves no time to finish the step, which returns the stop flags.
        """
        self.step.begin(index, self.settings.num_steps, is_logged=self.settings.is_logged(index + 1))
        measured = self.step.measures
        counts, tokens = self._counts(batches)
        seed_everything(self.settings.seed, index, self.processes.rank)
        self.engine.begin_step()
        denominators = {name: float(max(count, 1)) for name, count in counts.items()}
        sums = self._backward(batches, denominators, measured)
        if sums is None:
            return 0.0, 1.0
        norm = self.engine.gradient_norm()
        numbers = torch.cat([sums, norm.to(sums).reshape(1)]).tolist()  # the only device synchronisation
        loss, interrupts, preemptions, *totals, grad_norm = numbers
        found = iter(totals)
        losses = {name: next(found) / denominators[name] for name in counts}
        parts = {name: (next(found), next(found)) for name in measured}
        measures = {name: total / count for name, (total, count) in parts.items() if count}
        values = {"loss": loss, **losses, "gradient norm": grad_norm}
        if not all(map(math.isfinite, values.values())):
            raise self._not_finite(index, values, batches)
        rate = self.settings.learning_rate_at(index)
        self.engine.end_step(rate)
        return UpdateReport(loss, losses, measures, rate, grad_norm, tokens, (interrupts, preemptions))

    def _counts(self, batches: Sequence[AnyBatch]) -> tuple[dict[str, int], int]:
        """The valid tokens per term and the total tokens, over all micro-batches and processes."""
        assert batches, "an optimizer step without a micro-batch"
        each = [self.step.count(batch) for batch in batches]
        names = list(each[0])
        local = [sum(counts[name] for counts in each) for name in names]
        tokens = sum(batch.num_tokens() for batch in batches)
        *totals, all_tokens, micro_batches = self.processes.sum_numbers([*local, tokens, len(batches)])
        assert micro_batches == len(batches) * self.processes.count, "processes differ in their micro-batches"
        return {name: int(total) for name, total in zip(names, totals, strict=True)}, int(all_tokens)

    def _backward(
        self,
        batches: Sequence[AnyBatch],
        denominators: dict[str, float],
        measured: Sequence[str],
    ) -> Tensor | None:
        """Accumulate the gradients; return loss, stop flags, term sums and metric parts, over all processes.

        Denominators are global, so gradients are simply added. The result stays on the device, and its metric
        parts have the same length in all processes. None if all processes drop the step, because SIGTERM
        leaves one of them no time for it.
        """
        device, float_type = self.processes.device, self.processes.float_type
        size = len(denominators) + 2 * len(measured)
        sums = torch.zeros(3 + size, dtype=float_type, device=device)
        assert isinstance(self.step, nn.Module)
        buffers = persistent_buffers(self.step) if len(batches) > 1 else {}
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        is_late = _Lateness(self.processes, self.signals.deadline, len(batches))
        for position, batch in enumerate(batches):
            advanced()
            if is_late(position):
                for name, buffer in persistent_buffers(self.step).items():
                    buffer.copy_(before[name])
                return None
            is_last = position == len(batches) - 1
            loss, terms, found = self.engine.accumulate(batch.to(device), denominators, is_last=is_last)
            assert found.keys() <= set(measured), "a measure that was not announced"
            zero = loss.new_zeros(())
            nothing = MeanMetric(zero, zero)
            measures = chain(*(found.get(name, nothing) for name in measured))
            parts = [loss, zero, zero, *(terms[name] for name in denominators), *measures]
            sums += torch.stack([part.detach().to(sums).reshape(()) for part in parts])
        sums[1:3] += sums.new_tensor(self.signals.flags)
        return self.processes.sum(sums)

    def _not_finite(
        self, index: int, values: Mapping[str, float], batches: Sequence[AnyBatch]
    ) -> NonFiniteError:
        """What is not finite in step ``index``, whose fault it is, and what to do."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        found = ", ".join(f"{name} {value:g}" for name, value in values.items())
        where = self.engine.gradients_not_finite()
        culprits = (
            f"; gradients not finite: {', '.join(where[:3])}{' …' if len(where) > 3 else ''}" if where else ""
        )
        seed_everything(self.settings.seed, index, self.processes.rank)
        whose = self.processes.all_names(self._blamed(batches))
        of_teachers = [name for name in whose if name.startswith("teacher ")]
        if of_teachers:
            cure = "Check that model and its data; precision: fp32 of the teacher may help, or leave it out"
        else:
            cure = "A smaller learning rate, clipping or fp32 may help"
        blamed = f" Not finite: {', '.join(of_teachers or whose)}." if whose else ""
        return NonFiniteError(
            f"step {index + 1}: {', '.join(bad)} not finite ({found}{culprits}); stopped before the weights "
            f"changed, the last checkpoint is kept.{blamed} {cure}"
        )

    def _blamed(self, batches: Sequence[AnyBatch]) -> list[str]:
        """Whose values are not finite on this process's batches; [] if that cannot be computed."""
        found: list[str] = []
        with suppress(RuntimeError):  # such as too little memory
            for batch in batches:
                found += self.engine.not_finite(batch.to(self.processes.device))
        return list(dict.fromkeys(found))


class _Lateness:
    """Whether to drop an optimizer step, before each of its micro-batches, for all processes together.

    Several processes share what they find during the next micro-batch, so as not to wait for each other.
    """

    def __init__(self, processes: Processes, deadline: Deadline, micro_batches: int) -> None:
        self.processes, self.deadline, self.micro_batches = processes, deadline, micro_batches
        self.began = time.monotonic()
        self.shared: Callable[[], float] | None = None

    def __call__(self, position: int) -> bool:
        left_s = (time.monotonic() - self.began) * (self.micro_batches / max(position, 1) - 1)
        is_late = self.deadline.would_be_late(left_s)
        if self.processes.count == 1:
            return is_late
        found = self.shared is not None and self.shared() > 0
        if not found and position < self.micro_batches - 1:
            self.shared = self.processes.begin_sum(float(is_late))
        return found


def seed_everything(seed: int, index: int, rank: int) -> None:
    """Seed the global generators for one optimizer step, differently for each step and process.

    Dropout is then a function of (seed, step, process): a resumed run draws the same masks as an
    uninterrupted one, independent of validation and earlier work.
    """
    words = np.random.SeedSequence([seed, index, rank]).generate_state(3)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))
    random.seed(int(words[2]))
