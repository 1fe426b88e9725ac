"""Validation losses: one pass over held-out batches, summed over processes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import takewhile

import torch
from torch import nn

from stlm_kd.activity import Activity, doing
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import DataError, NonFiniteError
from stlm_kd.training.processes import Processes
from stlm_kd.training.protocols import Engine, TrainStep
from stlm_kd.training.signals import StopFlags, StopSignals


def validate(
    step: TrainStep,
    batches: Iterable[AnyBatch],
    *,
    engine: Engine,
    processes: Processes,
    signals: StopSignals,
    step_number: int,
) -> dict[str, float] | StopFlags:
    """Each term's mean over the valid tokens of all batches and processes; or the signals that stopped it.

    ``batches`` is this process's share. Processes may have different numbers of batches, even none; they
    communicate only at the end, unless the engine needs equal forward passes. ``step_number`` is the
    number of completed optimizer steps, for messages. Raises ``DataError`` if no
    token is labelled, ``NonFiniteError`` if a term is NaN or infinite.
    """
    assert isinstance(step, nn.Module)
    was_training = step.training
    deal = _matched if engine.needs_equal_forwards else _own
    given = deal(batches, processes, signals)
    step.eval()
    try:
        with doing("validating", unit="batch", pace="steps") as progress:
            sums, counts = _local_sums(step, engine, given, processes, progress)
    finally:
        step.train(was_training)
    names = processes.all_names(list(sums))
    local = [*signals.flags, *(sums.get(n, 0.0) for n in names), *(float(counts.get(n, 0)) for n in names)]
    interrupts, preemptions, *totals = processes.sum_numbers(local)
    if interrupts or preemptions:
        return interrupts, preemptions
    found, valid = totals[: len(names)], totals[len(names) :]
    losses = {name: total / max(count, 1.0) for name, total, count in zip(names, found, valid, strict=True)}
    _check(losses, dict(zip(names, valid, strict=True)), step_number)
    return losses


@torch.no_grad()
def _local_sums(
    step: TrainStep,
    engine: Engine,
    given: Iterable[tuple[AnyBatch, bool]],
    processes: Processes,
    progress: Activity,
) -> tuple[dict[str, float], dict[str, int]]:
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    for batch, is_own in given:
        valid = step.count(batch)  # on the CPU, to avoid synchronising with the device
        _, found, _ = engine.evaluate(batch.to(processes.device), dict.fromkeys(valid, 1.0))
        for name, value in found.items() if is_own else ():
            value = value.detach().to(processes.float_type)
            sums[name] = sums[name] + value if name in sums else value
            counts[name] = counts.get(name, 0) + valid[name]
        progress.advance()
    return {name: float(value) for name, value in sums.items()}, counts


def _own(
    batches: Iterable[AnyBatch], processes: Processes, signals: StopSignals
) -> Iterator[tuple[AnyBatch, bool]]:
    """The batches of this process, until it receives a signal; all are its own (True)."""
    return ((batch, True) for batch in takewhile(lambda _: not any(signals.flags), batches))


def _matched(
    batches: Iterable[AnyBatch], processes: Processes, signals: StopSignals
) -> Iterator[tuple[AnyBatch, bool]]:
    """As many batches in every process, until one receives a signal: where its own end, another's (False)."""
    own, filler = iter(batches), None
    while True:
        batch = next(own, None)
        stopped, active = processes.sum_numbers([float(any(signals.flags)), float(batch is not None)])
        if stopped or not active:
            return
        if active < processes.count and filler is None:
            filler = next(found for found in processes.gather(batch) if found is not None)
        if batch is not None:
            yield batch, True
        else:
            assert filler is not None
            yield filler, False


def _check(losses: dict[str, float], valid: dict[str, float], step_number: int) -> None:
    if not valid.get("labels"):
        raise DataError("validation: no token is labelled; give it more text, or leave it out")
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if bad:
        found = ", ".join(f"{name} {value:g}" for name, value in bad.items())
        if step_number == 0:
            raise NonFiniteError(
                f"validation before the first step: {found}; the model itself gives no finite loss on the "
                "held-out data. Check its weights, and the precision"
            )
        raise NonFiniteError(
            f"validation: {found}; the last checkpoint is kept. A smaller learning rate may help"
        )
