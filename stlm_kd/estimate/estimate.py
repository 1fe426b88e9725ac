"""The command ``estimate``: what a recipe will take, counted on its models without weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from stlm_kd.errors import UsageError
from stlm_kd.estimate.caching import cache_estimates, on_all_devices
from stlm_kd.estimate.counted import Counted, with_fewer_rows
from stlm_kd.estimate.counting import flops_of, sizes_of
from stlm_kd.estimate.devices import EFFICIENCY, Device, devices
from stlm_kd.estimate.measured import break_evens
from stlm_kd.estimate.memory import STAGES, Memory
from stlm_kd.estimate.placing import by_precision, is_precision_open, placed_teachers, placements_of
from stlm_kd.estimate.refusals import check_numbers, require_fitting_models, require_room
from stlm_kd.estimate.result import Estimate
from stlm_kd.estimate.simulation.simulate import simulate
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.pipeline.builders.flops import INTERVENTIONS, LOOKS
from stlm_kd.recipe import Recipe, named_recipe

_OPEN_PRECISION = (
    "teachers whose precision is left open: bf16 weights on accelerators (models and memory are of these, "
    "unless only the CPU is named), fp32 on the CPU"
)


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
        recipe: A recipe, a file, a built-in name, or a run's folder, whose validations then tell from
            where on distillation was better than its control at equal compute.
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
    measured = break_evens(Path(recipe)) if isinstance(recipe, str) else ()
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
    together = replace(_together(found, wanted), break_even=measured)
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
    run, few = simulate(skeleton), with_fewer_rows(skeleton)
    steps = _steps(recipe, tokens)
    flops = flops_of(skeleton, steps or LOOKS)
    share = efficiency or EFFICIENCY
    counted = Counted(skeleton, teachers, run, few, flops, share)
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


def _settings(counted: Counted) -> Iterator[tuple[str, Memory]]:
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
    engine = recipe.engine.deepspeed
    if engine is not None and engine.offload != "none":
        yield "time is that of an optimizer on the device, without what offload moves to the CPU and back"
    if any(one.placement == "shard" for one in skeleton.live.values()):
        yield "time and sent MB leave out the gathering of sharded teachers' weights"
    if skeleton.live and recipe.train.epochs != 1:
        yield "live teachers run on every row; a run computes their outputs on a small text (1 GiB) once"
    if any(one.translate for one in skeleton.live.values()):
        yield "translated teachers are counted at the student's positions; their own tokens may be more"
    if any(part.startswith(INTERVENTIONS) for part in flops):
        yield "interventions: FLOPs are a mean over the layers that may be drawn, memory is that of one"
    yield "not counted: teachers' own training and adaptation, validation, scores, the start of processes"
