"""Published limits of devices, and what is assumed of the way to them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stlm_kd.errors import UsageError, did_you_mean, one_line

EFFICIENCY = 0.6
"""Assumed share of the speed that a device's published limits allow."""

USABLE = 0.9
"""Assumed share of a device's memory that tensors can have: the rest is its runtime's, or lost in gaps."""

GPUS_PER_NODE = 8
MIB, GIB = 1 << 20, 1 << 30

CORE_FLOPS = 96e9
"""Assumed fp32 FLOP/s of a core: 32 in each cycle (two units of AVX2), 3 GHz."""

CORE_BANDWIDTH = 10e9
"""Assumed bytes/s of a core."""

LAUNCH_S = 5e-6
"""Assumed time in which Python and a driver start an operation on a GPU; small ones wait for it."""


@dataclass(frozen=True, slots=True)
class Device:
    """Peaks of a device, all dense.

    Attributes:
        name: As in ``--gpu``.
        title: As its maker calls it.
        bf16, fp32: Of matrix products, in FLOP/s; fp32 without TF32, which PyTorch leaves off.
        memory: In bytes.
        bandwidth: Of its memory, in bytes/s.
        link: To the other devices of its node, and
        network: to those of other nodes, in bytes/s, each way.
        launch: Seconds in which an operation is started.
    """

    name: str
    title: str
    bf16: float
    fp32: float
    memory: int
    bandwidth: float
    link: float
    network: float
    launch: float

    def flops(self, precision: str) -> float:
        """Its peak in FLOP/s."""
        return self.bf16 if precision == "bf16" else self.fp32

    @property
    def usable(self) -> int:
        """Bytes for tensors."""
        return int(USABLE * self.memory)

    def rate_between(self, gpus: int) -> float:
        """Bytes/s each way between so many devices."""
        return self.link if gpus <= GPUS_PER_NODE else self.network


def _gpu(
    name: str,
    title: str,
    *,
    bf16: float,
    fp32: float,
    mib: int,
    gb_per_s: float,
    link: float,
    network: float,
) -> Device:
    rates = (gb_per_s * 1e9, link * 1e9, network * 1e9)
    return Device(name, title, bf16 * 1e12, fp32 * 1e12, mib * MIB, *rates, LAUNCH_S)


# Peaks: NVIDIA's data sheets (A100 80GB SXM, 2021; H100 SXM, 2023; H200 SXM, 2024; T4, 2019) and its Ada
# white paper (RTX 4090, bf16 with fp32 accumulation). Memory: as nvidia-smi states it. Links: NVLink 3 and 4,
# PCIe 4.0 and 3.0 x16, one direction. Networks are assumed: one port for each GPU of 200 (A100) or 400 Gbit/s
# (H100, H200), one of 100 Gbit/s for eight of the others.
DEVICES = {
    device.name: device
    for device in (
        _gpu("a100", "A100 80GB SXM", bf16=312, fp32=19.5, mib=81920, gb_per_s=2039, link=300, network=25),
        _gpu("h100", "H100 SXM", bf16=989, fp32=67, mib=81559, gb_per_s=3350, link=450, network=50),
        _gpu("h200", "H200 SXM", bf16=989, fp32=67, mib=143771, gb_per_s=4800, link=450, network=50),
        _gpu("4090", "RTX 4090", bf16=165.2, fp32=82.6, mib=24564, gb_per_s=1008, link=32, network=1.56),
        # The T4 computes bf16 without tensor cores: its fp32 peak.
        _gpu("t4", "T4", bf16=8.1, fp32=8.1, mib=15360, gb_per_s=320, link=16, network=1.56),
    )
}


def cpu() -> Device:
    """The processor here: its cores and memory, with assumed speeds."""
    cores = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak, bandwidth = cores * CORE_FLOPS, cores * CORE_BANDWIDTH
    title = f"this CPU, {cores} cores (speeds assumed)"
    return Device("cpu", title, peak, peak, memory, bandwidth, bandwidth, bandwidth, 0.0)


def devices(names: list[str]) -> list[Device]:
    """The devices by name; UsageError for an unknown one.

    >>> [device.title for device in devices(["h100", "t4"])]
    ['H100 SXM', 'T4']
    """
    known = [*DEVICES, "cpu"]
    if not names:
        raise UsageError(f"--gpu: no device found; expected some of {', '.join(known)}")
    for name in names:
        if name not in known:
            raise UsageError(
                f"--gpu: {one_line(name)!r} found; expected a known device{did_you_mean(name, known)}"
            )
    return [cpu() if name == "cpu" else DEVICES[name] for name in dict.fromkeys(names)]
