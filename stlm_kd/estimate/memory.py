"""Memory of one device in training, by ZeRO stage and number of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stlm_kd.estimate.simulate import MicroBatch

Zero = Literal[0, 1, 2, 3]
STAGES: tuple[Zero, ...] = (0, 1, 2, 3)

_FLOAT = 4  # bytes; weights, gradients and optimizer state are fp32, also under bf16 autocast
_MOMENTS = 2 * _FLOAT  # AdamW's two averages
LARGEST_BUCKET = 2**27  # elements that DeepSpeed reduces at once, as this package sets it


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device at the peak of a step, by what holds them.

    Attributes:
        zero: The ZeRO stage; 0 is DDP, or a single process.
        gpus: Number of devices.
        weights: Of the trained modules; at stage 3 the own share and the largest module gathered.
        gradients: Those that are alive at the peak.
        optimizer: AdamW's averages, and with ZeRO the partition of weights that it updates.
        buffers: Of the communication.
        teachers: Weights of the teachers.
        activations: What the backward pass needs, and the teachers' outputs.
        working: All else that is alive at the peak: the losses' chunks, the head's gradient.
    """

    zero: Zero
    gpus: int
    weights: int
    gradients: int
    optimizer: int
    buffers: int
    teachers: int
    activations: int
    working: int

    @property
    def peak(self) -> int:
        parts = (self.weights, self.gradients, self.optimizer, self.buffers)
        return sum(parts) + self.teachers + self.activations + self.working


def memory_of(run: MicroBatch, zero: Zero, gpus: int, *, teachers: int, largest: int) -> Memory:
    """The memory of one of ``gpus`` devices.

    ``teachers`` are the bytes of their weights on each device, ``largest`` the parameters of the trained
    module that stage 3 gathers as a whole, such as the embedding.
    """
    every = run.trained * _FLOAT

    def shared(size: int, since: Zero) -> int:
        return size // gpus if zero >= since else size

    weights = shared(every, 3) + (largest * _FLOAT if zero == 3 and gpus > 1 else 0)
    partition = every // gpus if zero > 0 else 0
    bucket = every if zero == 0 else min(run.trained, LARGEST_BUCKET) * _FLOAT
    activations = min(run.activations, run.working)
    return Memory(
        zero,
        gpus,
        weights,
        shared(run.gradients, 2),
        shared(run.trained * _MOMENTS, 1) + partition,
        bucket if gpus > 1 else 0,
        teachers,
        activations,
        run.working - activations,
    )


def communicated(trained: int, zero: Zero, gpus: int, micro_batches: int) -> int:
    """Bytes that each device sends in an optimizer step, by rings.

    DDP and stage 1 reduce gradients and share them or the new weights; stage 2 reduces in each micro-batch;
    stage 3 gathers the weights twice in each, too.

    >>> communicated(1000, 0, 8, 4), communicated(1000, 3, 8, 1)
    (7000, 10500)
    """
    times = {0: 2, 1: 2, 2: 1 + micro_batches, 3: 3 * micro_batches}[zero]
    return times * trained * _FLOAT * (gpus - 1) // gpus
