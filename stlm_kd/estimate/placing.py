"""The teachers of a recipe on devices: their precision and placements, for estimates."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

from stlm_kd.estimate.devices import Device
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.simulation.stand_ins import PROJECTING, RUNNING
from stlm_kd.pipeline.builders.models import teacher_precision
from stlm_kd.recipe import Recipe
from stlm_kd.teachers import Placement
from stlm_kd.teachers.footprint import PLACEMENTS, Held, PlacedTeacher
from stlm_kd.training.config import Precision


def by_precision(recipe: Recipe, wanted: Sequence[Device]) -> list[tuple[Recipe, list[Device]]]:
    """The recipe with the precision that its teachers have on devices, and these; accelerators first.

    A precision that neither the recipe nor the command's pins state is bf16 on accelerators, fp32 on a CPU.
    All devices are together where nothing is left open.
    """
    found: list[tuple[Recipe, list[Device]]] = []
    for device in sorted(wanted, key=lambda one: one.name == "cpu"):
        own = _with_precision(recipe, "fp32" if device.name == "cpu" else "bf16")
        if found and found[-1][0] == own:
            found[-1][1].append(device)
        else:
            found.append((own, [device]))
    return found


def is_precision_open(recipe: Recipe) -> bool:
    """Whether the device decides in which precision a teacher runs."""
    return _with_precision(recipe, "bf16") != _with_precision(recipe, "fp32")


def _with_precision(recipe: Recipe, default: Precision) -> Recipe:
    teachers = (
        one if one.is_only_read else one.model_copy(update={"precision": teacher_precision(one, default)})
        for one in recipe.teachers
    )
    return recipe.model_copy(update={"teachers": tuple(teachers)})


def placed_teachers(skeleton: Skeleton) -> tuple[PlacedTeacher, ...]:
    """The live teachers of a recipe."""
    return tuple(
        PlacedTeacher.of(name, teacher.placement, skeleton.teachers[name])
        for name, teacher in skeleton.live.items()
    )


def placements_of(teachers: Iterable[PlacedTeacher]) -> Iterator[Placement | None]:
    """The placements to compare, the same for all teachers; None is the recipe's, where these differ."""
    teachers = list(teachers)
    if len({one.placement for one in teachers}) != 1:
        yield None
    if teachers:
        yield from (one for one in PLACEMENTS if one != "shard" or all(t.divides for t in teachers))


def moving(held: dict[str, Held]) -> dict[Hashable, int]:
    """The bytes by activity, for ``MicroBatch.peak_with``."""
    running: dict[Hashable, int] = {(name, RUNNING): one.running for name, one in held.items()}
    return running | {(name, PROJECTING): one.projecting for name, one in held.items()}
