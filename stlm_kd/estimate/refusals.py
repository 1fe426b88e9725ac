"""What an estimate refuses: numbers out of bounds, models that do not fit together, teachers without room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stlm_kd.errors import ModelError, RecipeError, UsageError, one_of
from stlm_kd.estimate.devices import GIB, Device
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.pipeline.builders.models import teacher_place
from stlm_kd.pipeline.builders.objective import feature_faults
from stlm_kd.pipeline.checks.validate import size_faults
from stlm_kd.recipe import Recipe
from stlm_kd.teachers.footprint import PLACEMENTS, PlacedTeacher

LARGEST_CLUSTER = 1 << 16
MOST_COLUMNS = 16  # numbers of devices in one estimate
MOST_TOKENS = 10**15
LEAST_EFFICIENCY = 0.001


def check_numbers(gpus: Sequence[int], tokens: int | None, efficiency: float | None) -> list[int]:
    """The numbers of devices, each once; UsageError for those out of bounds."""
    each = list(dict.fromkeys(gpus))
    if not 1 <= len(each) <= MOST_COLUMNS:
        raise UsageError(f"--gpus: {len(each)} numbers found; expected 1 to {MOST_COLUMNS} of them")
    for number in each:
        if not 1 <= number <= LARGEST_CLUSTER:
            raise UsageError(f"--gpus: {number:,} found; expected numbers from 1 to {LARGEST_CLUSTER:,}")
    if tokens is not None and not 1 <= tokens <= MOST_TOKENS:
        found = f"{tokens:,}" if tokens < 10**30 else "a longer number"
        raise UsageError(f"--tokens: {found} found; expected 1 to {MOST_TOKENS:,}")
    if efficiency is not None and not LEAST_EFFICIENCY <= efficiency <= 1:
        raise UsageError(
            f"--efficiency: {efficiency:g} found; expected a share from {LEAST_EFFICIENCY:g} to 1"
        )
    return each


def require_fitting_models(skeleton: Skeleton, name: str) -> None:
    """RecipeError with all faults that configurations show: sites, families and positions."""
    recipe, student = skeleton.recipe, skeleton.student.config
    configs = {teacher: model.config for teacher, model in skeleton.teachers.items()}
    faults = list(feature_faults(recipe, student, configs))
    for teacher, config in configs.items():
        faults += size_faults(teacher_place(recipe, teacher), config, None, recipe)
    faults += size_faults("student", student, None, recipe)
    if faults:
        raise RecipeError(name, faults)


def require_room(
    recipe: Recipe, kinds: Iterable[tuple[Sequence[PlacedTeacher], Sequence[Device]]], most: int
) -> None:
    """ModelError for a live teacher whose weights exceed every device as it is placed, on up to ``most``.

    ``kinds`` are the teachers as they are on some devices, and these.
    """
    errors = [_lacking(recipe, teachers, wanted, most) for teachers, wanted in kinds]
    first = errors[0]
    if first is not None and None not in errors:
        raise first


def _lacking(
    recipe: Recipe, teachers: Sequence[PlacedTeacher], wanted: Sequence[Device], most: int
) -> ModelError | None:
    largest = max(wanted, key=lambda device: device.usable)
    for teacher in teachers:
        needed = {
            placement: teacher.held(most, placement).stays + teacher.held(most, placement).running
            for placement in PLACEMENTS
            if placement != "shard" or teacher.divides
        }
        own = teacher.placement if largest.name != "cpu" else "replicate"
        if needed[own] <= largest.usable:
            continue
        fitting = [placement for placement, size in needed.items() if size <= largest.usable]
        cure = f"use placement: {one_of(fitting)}, " if fitting and largest.name != "cpu" else ""
        devices = f"{most:,} device{'s' * (most > 1)}"
        return ModelError(
            f"{teacher_place(recipe, teacher.name)}: {needed[own] / GIB:,.1f} GiB of weights on each of "
            f"{devices} by placement: {own} found; expected at most {largest.usable / GIB:,.1f}, the room of "
            f"{largest.title}; {cure}name a larger device by --gpu, or read its outputs from a cache that "
            "one wrote (cache: auto)"
        )
    return None
