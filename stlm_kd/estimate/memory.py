"""Memory of one device in training, by ZeRO stage and number of devices."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from stlm_kd.estimate.communication import Zero, ZeroSettings
from stlm_kd.estimate.simulation.simulate import MicroBatch
from stlm_kd.teachers import Placement
from stlm_kd.training.config import Offload

STAGES: tuple[Zero, ...] = (0, 1, 2, 3)

_FLOAT = 4  # bytes; gradients and optimizer state are fp32, also of bf16 weights
_MOMENTS = 2 * _FLOAT  # AdamW's two averages
LARGEST_BUCKET = 2**27  # elements that DeepSpeed reduces at once, as this package sets it


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device at the peak of a step, by what holds them.

    Attributes:
        zero: The ZeRO stage; 0 is DDP, or a single process.
        gpus: Number of devices.
        placement: Of all live teachers; None: as in the recipe, which has several.
        weights: Of the trained modules; at stage 3 the own share and what is gathered.
        gradients: Those that are alive at the peak.
        optimizer: AdamW's averages, and with ZeRO the partition of weights that it updates.
        buffers: Of the communication.
        teachers: Weights of the teachers that are there at the peak.
        activations: What the backward pass needs, and the teachers' outputs.
        working: All else that is alive at the peak: the losses' chunks, the head's gradient.
    """

    zero: Zero
    gpus: int
    placement: Placement | None
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


def memory_of(
    run: MicroBatch,
    zero: Zero,
    gpus: int,
    *,
    stays: int,
    moving: Mapping[Hashable, int],
    placement: Placement | None,
    largest: int,
    offload: Offload,
    settings: ZeroSettings,
) -> Memory:
    """The memory of one of ``gpus`` devices.

    ``stays`` are the bytes of the teachers' weights that stay there, ``moving`` those added by activity;
    ``largest`` the parameters of the trained module that stage 3 gathers as a whole, such as the embedding.
    ``offload`` applies from the stage on that it needs, bf16 weights of the ``settings`` from stage 2 on.
    """
    every, element = run.trained * _FLOAT, settings.bytes_at(zero)
    peak, added = run.peak_with(moving)
    working = peak.num_bytes - peak.gradients
    on_cpu = zero > 0 and offload != "none"

    def shared(size: int, since: Zero) -> int:
        return size // gpus if zero >= since else size

    without_weights = zero == 3 and offload == "parameters"
    weights = 0 if without_weights else shared(run.trained * element, 3)
    if zero == 3 and (gpus > 1 or without_weights):
        weights += min(run.trained, max(largest, settings.most_kept)) * element
    partition = every // gpus if zero > 0 else 0
    gradients = 0 if on_cpu and zero > 1 else shared(peak.gradients, 2)
    buffers = _buffers(run, zero, element) if gpus > 1 else 0
    activations = min(run.activations, working)
    if zero == 1 and buffers:  # filled after the last backward pass, when no activations are left
        if buffers < working:
            buffers = 0
        else:
            gradients, working, activations, added = every, 0, 0, 0
    return Memory(
        zero,
        gpus,
        placement,
        weights,
        gradients,
        0 if on_cpu else shared(run.trained * _MOMENTS, 1) + partition,
        buffers,
        stays + added,
        activations,
        working - activations,
    )


def _buffers(run: MicroBatch, zero: Zero, element: int) -> int:
    """DDP keeps a copy of all gradients, DeepSpeed fills a bucket."""
    return run.trained * _FLOAT if zero == 0 else min(run.trained, LARGEST_BUCKET) * element
