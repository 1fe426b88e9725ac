"""When a cache of the teachers' outputs pays: its size, and the epochs after which it took less time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from stlm_kd.estimate.counting import flops_of, micro_work
from stlm_kd.estimate.devices import Device
from stlm_kd.estimate.simulation.simulate import MicroBatch, simulate
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.speed import Work
from stlm_kd.pipeline.builders.flops import LOOKS
from stlm_kd.recipe.schema.cache import VARIANTS, positions_of
from stlm_kd.recipe.validation.cache import cache_conflicts
from stlm_kd.teachers.cache.writer import estimated_bytes


@dataclass(frozen=True, slots=True)
class CacheEstimate:
    """The cache of a teacher's outputs.

    Attributes:
        teacher: Its name.
        token_bytes: Bytes of a stored position; of an example for classifiers.
        num_bytes: Of the whole cache; None if the tokens of the text are not known.
        break_even: By device, the epochs (or students) after which all caches together took less time than
            live teachers; None if never.
        refused: Why it cannot be cached; None if it can.
    """

    teacher: str
    token_bytes: int = 0
    num_bytes: int | None = None
    break_even: Mapping[str, float | None] | None = None
    refused: str | None = None


def cache_estimates(
    skeleton: Skeleton,
    run: MicroBatch,
    flops: Mapping[str, float],
    wanted: Sequence[Device],
    tokens: int | None,
) -> list[CacheEstimate]:
    """One estimate for each teacher that objectives use and that is not only read from a cache.

    ``run`` and ``flops`` are those of the recipe as it is.
    """
    used = [
        teacher
        for teacher in skeleton.recipe.teachers
        if teacher.name in skeleton.job.used_teachers and not teacher.is_only_read
    ]
    if not used:
        return []
    stored = skeleton.cached(True)
    if refusals := [message for _, message in cache_conflicts(stored.recipe)]:
        return [CacheEstimate(teacher.name, refused=refusals[0]) for teacher in used]
    if skeleton.job.cached:
        live = skeleton.cached(False)
        run, flops = simulate(live), flops_of(live, LOOKS)
    break_even = _break_even(skeleton, micro_work(skeleton, run, flops), flops, wanted)
    found = []
    for teacher in stored.recipe.teachers:
        if teacher.name not in {one.name for one in used}:
            continue
        layout = stored.layout(teacher)
        share = 1.0
        if stored.recipe.task == "mlm":
            share = float(VARIANTS)
            if positions_of(stored.recipe, teacher.name) == "labels":
                share *= stored.recipe.data.masked_share or 1.0
        size = None
        if tokens is not None:
            kept = tokens * stored.recipe.data.fraction
            rows = round(kept / stored.recipe.data.context)
            positions = rows if layout.logits else round(kept * share)
            size = estimated_bytes(layout, positions, rows)
        found.append(CacheEstimate(teacher.name, layout.token_bytes, size, break_even))
    return found


def on_all_devices(found: Sequence[Sequence[CacheEstimate]]) -> tuple[CacheEstimate, ...]:
    """The estimates for the same caches on several sets of devices as one for each cache."""
    together = []
    for own in zip(*found, strict=True):
        after = {name: epochs for one in own for name, epochs in (one.break_even or {}).items()}
        together.append(replace(own[0], break_even=after or None))
    return tuple(together)


def _break_even(
    skeleton: Skeleton, live: Work, flops: Mapping[str, float], wanted: Sequence[Device]
) -> dict[str, float | None]:
    """By device: the time that the teachers take once, over that which a cache saves in each epoch.

    The teachers' time in writing a cache is what they add to a step of labels alone.
    """
    precision = skeleton.recipe.train.precision
    own = {part: number for part, number in flops.items() if not part.startswith("teacher ")}
    others = (skeleton.cached(True), skeleton.alone())
    works = [live, *(micro_work(one, simulate(one), own) for one in others)]
    variants = VARIANTS if skeleton.recipe.task == "mlm" else 1
    found: dict[str, float | None] = {}
    for device in wanted:
        online, cached, alone = (work.seconds(device, precision) for work in works)
        saved = online - cached
        found[device.name] = variants * (online - alone) / saved if saved > 0 else None
    return found
