"""The live teachers of a recipe and their placements, for estimates."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from stlm_kd.estimate.skeleton import Skeleton
from stlm_kd.estimate.stand_ins import PROJECTING, RUNNING
from stlm_kd.teachers import Placement
from stlm_kd.teachers.footprint import PLACEMENTS, Held, PlacedTeacher


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
