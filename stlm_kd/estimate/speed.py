"""Time of an optimizer step on a device: what its published limits allow, divided by an efficiency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stlm_kd.estimate.communication import Collective, Zero, sent_bytes
from stlm_kd.estimate.devices import Device

_OPTIMIZER_BYTES = 40  # of each parameter: norm, clipping, and AdamW's reads and writes in fp32

Scaling = Literal["strong", "weak"]
"""The same rows of a step on more devices, or the same rows on each."""


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one micro-batch on one device.

    Attributes:
        flops: Of matrix products.
        moved: Bytes read and written by all other operations.
        launches: Number of operations.
    """

    flops: float
    moved: float
    launches: float

    def seconds(self, device: Device, precision: str) -> float:
        """At the device's limits."""
        products, traffic = self.flops / device.flops(precision), self.moved / device.bandwidth
        return max(products + traffic, self.launches * device.launch)

    def bound(self, device: Device, precision: str) -> str:
        """What takes most of the time."""
        products, traffic = self.flops / device.flops(precision), self.moved / device.bandwidth
        if self.launches * device.launch > products + traffic:
            return "starting operations"
        return "matrix products" if products > traffic else "memory traffic"


@dataclass(frozen=True, slots=True)
class Speed:
    """An optimizer step on several devices.

    Attributes:
        rows: Of the step, over all devices.
        micro_batches: Of each device.
        seconds: Of the step, at the efficiency.
        sent: Bytes that each device sends.
        bound: What takes most of the time.
    """

    scaling: Scaling
    gpus: int
    rows: int
    micro_batches: int
    seconds: float
    sent: int
    bound: str

    def tokens_per_second(self, length: int) -> float:
        return self.rows * length / self.seconds


def speed_of(
    work: Work,
    device: Device,
    *,
    scaling: Scaling,
    gpus: int,
    rows: int,
    micro_batches: int,
    trained: int,
    zero: Zero,
    operations: Sequence[Collective],
    precision: str,
    efficiency: float,
) -> Speed:
    """The speed of an optimizer step, communication not overlapped with work.

    ``rows`` of the step are shared by ``gpus`` devices, each with ``micro_batches`` of ``work`` and
    these collective ``operations``.
    """
    computing = micro_batches * work.seconds(device, precision)
    owned = trained / (gpus if zero > 0 else 1)
    updating = owned * _OPTIMIZER_BYTES / device.bandwidth
    sent = sent_bytes(operations, gpus)
    sending = sent / device.rate_between(gpus)
    slowest = max(
        (computing, work.bound(device, precision)), (updating, "optimizer"), (sending, "communication")
    )
    seconds = (computing + updating + sending) / efficiency
    return Speed(scaling, gpus, rows, micro_batches, seconds, sent, slowest[1])
