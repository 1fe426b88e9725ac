"""The command ``estimate``: what a recipe will take, counted on its models without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from stlm_kd.errors import UsageError
from stlm_kd.estimate.caching import CacheEstimate, cache_estimates, on_all_devices
from stlm_kd.estimate.communication import Collective, Zero, ZeroSettings, collectives
from stlm_kd.estimate.counting import ModelSize, flops_of, largest_module, micro_work, sizes_of
from stlm_kd.estimate.devices import EFFICIENCY, Device, devices
from stlm_kd.estimate.memory import STAGES, Memory, memory_of
from stlm_kd.estimate.placing import by_precision, is_precision_open, moving, placed_teachers, placements_of
from stlm_kd.estimate.refusals import check_numbers, require_fitting_models, require_room
from stlm_kd.estimate.simulate import MicroBatch, simulate
from stlm_kd.estimate.skeleton import Skeleton
from stlm_kd.estimate.speed import Scaling, Speed, speed_of
from stlm_kd.estimate.trace import Peak
from stlm_kd.pipeline.builders.flops import INTERVENTIONS, LOOKS
from stlm_kd.recipe import Recipe, named_recipe
from stlm_kd.teachers import Placement
from stlm_kd.teachers.footprint import PlacedTeacher

if TYPE_CHECKING:
    from rich.table import Table


_OPEN_PRECISION = (
    "teachers whose precision is left open: bf16 weights on accelerators (models and memory are of these, "
    "unless only the CPU is named), fp32 on the CPU"
)


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
        speeds, how = found.pop("speeds"), "given" if found.pop("is_efficiency_given") else "assumed"
        for given, one in zip(speeds, self.speeds, strict=True):
            given["memory"] = one.memory.peak
        return {
            "recipe": found.pop("name"),
            "notes": found.pop("notes"),
            how: {"efficiency": found.pop("efficiency")},
            "counted": {**found, "flops_per_step": self.flops_per_step},
            "calculated": speeds,
        }


def estimate_recipe(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    gpus: Sequence[int] = (1, 8, 64),
    gpu: Sequence[str] = ("a100", "h100", "h200", "4090", "t4"),
    tokens: int | None = None,
    efficiency: float | None = None,
    trust_remote_code: bool = False,
) -> Estimate:
    """What training one student of a recipe takes: parameters, FLOPs, memory, time. Loads no weights.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        name: The recipe's name; default: as for a run.
        gpus: Numbers of devices; the CPU is estimated alone.
        gpu: Names of devices: a100, h100, h200, 4090, t4, cpu.
        tokens: Tokens of the training text, for the time of a recipe with epochs, and for caches.
        efficiency: Share of the devices' published limits, as measured; default: an assumption.
        trust_remote_code: Whether to build models by code shipped with them.

    Raises:
        RecipeError: The recipe is invalid.
        UsageError: It trains no student; an unknown device; a number out of bounds.
        MissingResourceError: A configuration or tokenizer is missing.
        ModelError: A model cannot be built, or a teacher fits none of the devices.
    """
    recipe, name = named_recipe(recipe, overrides, name)
    if recipe.adapts_only:
        raise UsageError(f"{name}: trains no student, whose cost this command estimates; name another recipe")
    gpus = check_numbers(gpus, tokens, efficiency)
    wanted = devices(list(gpu))
    kinds = [
        (Skeleton.of(own, trust_remote_code=trust_remote_code), on)
        for own, on in by_precision(recipe, wanted)
    ]
    require_fitting_models(kinds[0][0], name)
    require_room(recipe, [(placed_teachers(skeleton), on) for skeleton, on in kinds], max(gpus))
    found = [_estimate(skeleton, name, gpus, on, tokens, efficiency) for skeleton, on in kinds]
    together = _together(found, wanted)
    if is_precision_open(recipe):
        together = replace(together, notes=(_OPEN_PRECISION, *together.notes))
    return together


def _together(found: Sequence[Estimate], wanted: Sequence[Device]) -> Estimate:
    """The first of the estimates for accelerators and for a CPU, with the times on all devices."""
    speeds = [speed for one in found for speed in one.speeds]
    names = [device.name for device in wanted]
    ordered = sorted(speeds, key=lambda one: names.index(one.device))
    return replace(found[0], speeds=tuple(ordered), caches=on_all_devices([one.caches for one in found]))


def _estimate(
    skeleton: Skeleton,
    name: str,
    gpus: Sequence[int],
    wanted: Sequence[Device],
    tokens: int | None,
    efficiency: float | None,
) -> Estimate:
    """For devices on which the teachers have the same precision."""
    recipe, teachers = skeleton.recipe, placed_teachers(skeleton)
    train = recipe.train
    rows = min(train.micro_batch or train.effective_batch, train.effective_batch)
    skeleton = skeleton.like(rows=rows)
    run, few = simulate(skeleton), _with_fewer_rows(skeleton)
    steps = _steps(recipe, tokens)
    flops = flops_of(skeleton, steps or LOOKS)
    share = efficiency or EFFICIENCY
    counted = _Counted(skeleton, teachers, run, few, flops, share)
    micro_batches = math.ceil(train.effective_batch / rows)
    total = None if steps is None else steps * train.effective_batch * recipe.data.context
    return Estimate(
        name=name,
        models=tuple(sizes_of(skeleton)),
        length=recipe.data.context,
        rows=train.effective_batch,
        micro_batch=rows,
        steps=steps,
        tokens=total,
        flops=flops,
        settings=dict(_settings(counted)),
        memory=tuple(
            counted.memory(zero, n, placement=placement)
            for zero in STAGES
            for placement in placements_of(teachers)
            for n in gpus
        ),
        collectives={zero: counted.collectives(zero, micro_batches) for zero in STAGES},
        speeds=tuple(counted.speeds(wanted, gpus, total)),
        caches=tuple(cache_estimates(skeleton, run, flops, wanted, tokens)),
        efficiency=share,
        is_efficiency_given=efficiency is not None,
        notes=tuple(_notes(skeleton, flops, steps, gpus)),
    )


def _steps(recipe: Recipe, tokens: int | None) -> int | None:
    """Optimizer steps; with epochs they follow from the tokens of the text, packed into full rows."""
    if recipe.train.steps is not None or tokens is None:
        return recipe.train.steps
    assert recipe.train.epochs is not None
    rows = math.ceil(tokens * recipe.data.fraction / recipe.data.context)
    return recipe.train.epochs * math.ceil(rows / recipe.train.effective_batch)


def _with_fewer_rows(skeleton: Skeleton) -> MicroBatch | None:
    """The micro-batch with a quarter of the rows; None if it has too few."""
    rows = skeleton.recipe.train.micro_batch or 1
    return simulate(skeleton.like(rows=max(2, rows // 4)), accumulates=True) if rows > 2 else None


@dataclass(frozen=True, slots=True)
class _Counted:
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
        work = micro_work(self.skeleton, self.at(micro), self.flops)
        micro_batches = math.ceil(rows / gpus / micro)
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


def _settings(counted: _Counted) -> Iterator[tuple[str, Memory]]:
    """The memory on one device by precision and checkpointing."""
    own = counted.skeleton.recipe.train
    for precision in ("fp32", "bf16"):
        for checkpointing in (False, True):
            if (precision, checkpointing) == (own.precision, own.gradient_checkpointing):
                run = counted.run
            else:
                run = simulate(
                    counted.skeleton.like(precision=precision, gradient_checkpointing=checkpointing)
                )
            label = f"{precision}, gradient checkpointing" if checkpointing else precision
            yield label, replace(counted, run=run, few=None).memory(0, 1)


def _notes(
    skeleton: Skeleton, flops: Mapping[str, float], steps: int | None, gpus: Sequence[int]
) -> Iterator[str]:
    recipe = skeleton.recipe
    if steps is None:
        yield "train.epochs: the steps follow from the text, which is not read; give its tokens by --tokens"
    if uneven := [number for number in gpus if recipe.train.effective_batch % number]:
        rows, numbers = f"{recipe.train.effective_batch:,} rows", ", ".join(map(str, uneven))
        yield f"strong scaling: {rows} cannot be shared evenly by {numbers} devices"
    if recipe.language_task is None:
        yield f"rows of labelled examples are counted with the most positions ({recipe.data.context})"
    if slow := [name for name, one in skeleton.live.items() if one.placement in ("offload", "cpu")]:
        yield f"time is that of teachers on the device, also for those on the CPU: {', '.join(slow)}"
    if any(one.placement == "shard" for one in skeleton.live.values()):
        yield "time and sent MB leave out the gathering of sharded teachers' weights"
    if skeleton.live and recipe.train.epochs != 1:
        yield "live teachers run on every row; a run computes their outputs on a small text (1 GiB) once"
    if any(part.startswith(INTERVENTIONS) for part in flops):
        yield "interventions: FLOPs are a mean over the layers that may be drawn, memory is that of one"
    yield "not counted: teachers' own training and adaptation, validation, scores, the start of processes"
