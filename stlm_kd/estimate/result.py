"""What an estimate says of one student of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stlm_kd.estimate.caching import CacheEstimate
from stlm_kd.estimate.communication import Collective
from stlm_kd.estimate.counting import ModelSize
from stlm_kd.estimate.measured import BreakEven
from stlm_kd.estimate.memory import Memory
from stlm_kd.estimate.speed import Speed

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """A speed on a device, whether its memory suffices, and the rows of a micro-batch that would fit."""

    device: str
    speed: Speed
    memory: Memory
    fits: bool
    rows_that_fit: int
    tokens_per_second: float
    hours: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one student of a recipe takes.

    Attributes:
        name: The recipe's.
        models: Student and teachers.
        length: Positions of a row; of labelled examples the most.
        rows: Of an optimizer step.
        micro_batch: Rows of a micro-batch.
        steps: Optimizer steps; None if they follow from a text that was not counted.
        tokens: Positions of all steps; None as ``steps``.
        flops: Of an optimizer step, by part.
        settings: Memory on one device with each precision, with and without gradient checkpointing.
        memory: Memory as the recipe has it, by ZeRO stage, placement of the live teachers and number of
            devices.
        collectives: Operations of an optimizer step on several devices, by ZeRO stage, with the recipe's
            micro-batches of one device.
        speeds: By device, scaling and number of devices.
        caches: Of the teachers, where their outputs can be cached.
        efficiency: Share of the devices' limits.
        is_efficiency_given: Whether it was given; otherwise it is assumed.
        notes: What the figures leave out.
        break_even: Of distillation against its control at equal compute, for a run's folder.
    """

    name: str
    models: tuple[ModelSize, ...]
    length: int
    rows: int
    micro_batch: int
    steps: int | None
    tokens: int | None
    flops: Mapping[str, float]
    settings: Mapping[str, Memory]
    memory: tuple[Memory, ...]
    collectives: Mapping[int, tuple[Collective, ...]]
    speeds: tuple[DeviceSpeed, ...]
    caches: tuple[CacheEstimate, ...]
    efficiency: float
    is_efficiency_given: bool
    notes: tuple[str, ...]
    break_even: tuple[BreakEven, ...] = ()

    @property
    def flops_per_step(self) -> int:
        return round(sum(self.flops.values()))

    def tables(self) -> list[Table]:
        """The figures as tables."""
        from stlm_kd.estimate.tables import tables_of

        return tables_of(self)

    def as_json(self) -> dict[str, Any]:
        """All figures, by how they were found."""
        found = asdict(self)
        for given, memory in zip(found["memory"], self.memory, strict=True):
            given["peak"] = memory.peak
        for label, memory in self.settings.items():
            found["settings"][label]["peak"] = memory.peak
        measured = {"break_even": found.pop("break_even")}
        speeds, how = found.pop("speeds"), "given" if found.pop("is_efficiency_given") else "assumed"
        for given, one in zip(speeds, self.speeds, strict=True):
            given["memory"] = one.memory.peak
        return {
            "recipe": found.pop("name"),
            "notes": found.pop("notes"),
            how: {"efficiency": found.pop("efficiency")},
            "counted": {**found, "flops_per_step": self.flops_per_step},
            "calculated": speeds,
            "measured": measured,
        }
