"""Memory and speed on several devices, from one micro-batch that was counted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from stlm_kd.estimate.communication import Collective, Zero, ZeroSettings, collectives
from stlm_kd.estimate.counting import largest_module, micro_work
from stlm_kd.estimate.devices import Device
from stlm_kd.estimate.memory import Memory, memory_of
from stlm_kd.estimate.placing import moving
from stlm_kd.estimate.result import DeviceSpeed
from stlm_kd.estimate.simulation.simulate import MicroBatch, simulate
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.simulation.trace import Peak
from stlm_kd.estimate.speed import Scaling, speed_of
from stlm_kd.teachers import Placement
from stlm_kd.teachers.footprint import PlacedTeacher


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted, and the efficiency."""

    skeleton: Skeleton
    teachers: tuple[PlacedTeacher, ...]
    run: MicroBatch
    few: MicroBatch | None
    flops: Mapping[str, float]
    efficiency: float

    @property
    def zero(self) -> Zero:
        engine = self.skeleton.recipe.engine.deepspeed
        return 0 if engine is None else engine.zero

    @property
    def settings(self) -> ZeroSettings:
        return ZeroSettings.of(self.skeleton.recipe)

    def collectives(self, zero: Zero, micro_batches: int) -> tuple[Collective, ...]:
        return collectives(self.run.sizes, zero, micro_batches, self.settings)

    def at(self, rows: int) -> MicroBatch:
        """The micro-batch with other rows: linear in these."""
        few, run = self.few, self.run
        if few is None or few.rows == run.rows or rows == run.rows:
            return replace(run, rows=rows)

        def between(low: int, high: int) -> int:
            return max(0, round(low + (high - low) * (rows - few.rows) / (run.rows - few.rows)))

        def line(name: str) -> int:
            return between(int(getattr(few, name)), int(getattr(run, name)))

        def peak(one: Peak, other: Peak) -> Peak:
            working = between(one.num_bytes - one.gradients, other.num_bytes - other.gradients)
            return Peak(working + other.gradients, other.gradients)

        return replace(
            run,
            rows=rows,
            activations=line("activations"),
            peaks={doing: peak(few.peaks.get(doing, one), one) for doing, one in run.peaks.items()},
            moved=line("moved"),
            launches=line("launches"),
        )

    def memory(
        self,
        zero: Zero,
        gpus: int,
        rows: int | None = None,
        *,
        placement: Placement | None = None,
        offloads: bool = True,
    ) -> Memory:
        """``placement`` is that of all live teachers; None: as in the recipe."""
        held = {one.name: one.held(gpus, placement) for one in self.teachers}
        engine = self.skeleton.recipe.engine.deepspeed
        return memory_of(
            self.run if rows is None else self.at(rows),
            zero,
            gpus,
            stays=sum(one.stays for one in held.values()),
            moving=moving(held),
            placement=placement,
            largest=largest_module(self.skeleton.student),
            offload=engine.offload if engine is not None and offloads else "none",
            settings=self.settings,
        )

    def speeds(
        self, wanted: Sequence[Device], gpus: Sequence[int], total: int | None
    ) -> Iterator[DeviceSpeed]:
        """On each device, with strong and weak scaling."""
        effective, micro = self.skeleton.recipe.train.effective_batch, self.run.rows
        for device in wanted:
            for number in gpus if device.name != "cpu" else [1]:
                if effective % number == 0:
                    own = effective // number
                    yield self._speed(device, "strong", number, effective, min(micro, own), total)
                if number > 1:
                    yield self._speed(device, "weak", number, effective * number, micro, total)

    def _speed(
        self, device: Device, scaling: Scaling, gpus: int, rows: int, micro: int, total: int | None
    ) -> DeviceSpeed:
        recipe = self.skeleton.recipe
        length = recipe.data.context
        own = rows // gpus
        micro_batches = math.ceil(own / micro)
        mean = math.ceil(own / micro_batches)  # the last one may have fewer rows
        work = micro_work(self.skeleton, self.at(mean), self.flops)
        speed = speed_of(
            work,
            device,
            scaling=scaling,
            gpus=gpus,
            rows=rows,
            micro_batches=micro_batches,
            trained=self.run.trained,
            zero=self.zero,
            operations=self.collectives(self.zero, micro_batches),
            precision=recipe.train.precision,
            efficiency=self.efficiency,
        )
        memory = self._on(device, gpus, micro)
        pace = speed.tokens_per_second(length)
        hours = None if total is None else total / pace / 3600
        fits = memory.peak <= device.usable
        return DeviceSpeed(device.name, speed, memory, fits, self._most_rows(device, gpus), pace, hours)

    def _on(self, device: Device, gpus: int, rows: int) -> Memory:
        """On a device; a CPU has all teachers whole, and offloads nothing."""
        if device.name == "cpu":
            return self.memory(self.zero, gpus, rows, placement="replicate", offloads=False)
        return self.memory(self.zero, gpus, rows)

    def _most_rows(self, device: Device, gpus: int) -> int:
        """The most rows of a micro-batch that fit, up to a step's; 0 for none."""
        low, high = 0, self.skeleton.recipe.train.effective_batch
        while low < high:
            middle = (low + high + 1) // 2
            if self._on(device, gpus, middle).peak <= device.usable:
                low = middle
            else:
                high = middle - 1
        return low


def with_fewer_rows(skeleton: Skeleton) -> MicroBatch | None:
    """The micro-batch with a quarter of the rows; None if it has too few."""
    rows = skeleton.recipe.train.micro_batch or 1
    return simulate(skeleton.like(rows=max(2, rows // 4)), accumulates=True) if rows > 2 else None
