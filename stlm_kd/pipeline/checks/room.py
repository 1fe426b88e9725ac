"""Whether each live teacher's weights fit into the memory, from its configuration, before they are loaded.

Only weights count, and all of the memory, also what is in use now: what is refused here can never fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from math import ceil, inf
from pathlib import Path

import torch
from transformers import PretrainedConfig

from stlm_kd.errors import RecipeFault, one_of
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.pipeline.builders.models import placement_here, teacher_place, teacher_precision
from stlm_kd.pipeline.builders.untrained import untrained_model, with_rows
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.placement import placement as process_placement
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.teachers import Placement
from stlm_kd.teachers.footprint import PLACEMENTS, PlacedTeacher
from stlm_kd.training.config import Precision
from stlm_kd.training.processes import current_device
from stlm_kd.vocabulary.token_bytes import vocabulary_size

_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Room:
    """The memory for weights in bytes.

    Attributes:
        device: Of each process's accelerator; None without one.
        host: Of this node, for all its processes.
        processes: Of the command, and
        local: those on this node.
    """

    device: float | None
    host: float
    processes: int = 1
    local: int = 1

    def lacks(self, teacher: PlacedTeacher, placement: Placement) -> str | None:
        """What the weights need and what there is; None if they fit."""
        held = teacher.held(self.processes, placement)
        needed = held.stays + held.running
        if self.device is None:
            if placement == "shard" and self.processes > 1:
                needed = held.stays * self.local + held.running
            else:
                needed = teacher.whole
            return _lack(needed, self.host, "the memory of this machine")
        if found := _lack(needed, self.device, "each device"):
            return found
        if placement in ("offload", "cpu"):
            return _lack(teacher.whole, self.host, "the memory of this machine")
        return None

    def cures(self, teacher: PlacedTeacher) -> Iterator[str]:
        """The placements under which the weights fit, with more processes, too."""
        if self.device is None:
            spare = self.host - teacher.unit
            if teacher.divides and spare > 0 and (count := ceil(teacher.whole / spare)) > 1:
                yield f"placement: shard over at least {count:,} nodes"
            return
        for placement in PLACEMENTS:
            if placement != "shard" and self.lacks(teacher, placement) is None:
                yield f"placement: {placement}"
        if teacher.divides and self.device > teacher.unit:
            count = max(2, ceil(teacher.whole / (self.device - teacher.unit)))
            yield f"placement: shard over at least {count:,} processes"


def room_here() -> Room:
    """The memory of this process's device and machine, as far as it is known; else infinite."""
    device, own = current_device(), process_placement()
    if device.type == "mps":
        return Room(inf, inf, own.size, own.local_size)
    total = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    return Room(total, _host_memory(), own.size, own.local_size)


def room_faults(
    setup: RecipeSetup, configs: Mapping[str, PretrainedConfig], room: Room
) -> Iterator[RecipeFault]:
    """A fault for each teacher, of those that run and whose configurations these are, that cannot fit.

    Where only adapting is wanted, whose engine may partition the weights too, any placement will do.
    """
    recipe = setup.recipe
    used = {teacher.name for teacher in recipe.teachers}
    if not recipe.adapts_only:
        used = StudentJob.of(setup, "student", recipe.seeds[0], {}).used_teachers
    for entry in recipe.teachers:
        if entry.name not in used or entry.name not in configs:
            continue
        teacher = _placed(entry, configs[entry.name], setup)
        if teacher is None:
            continue
        placement = placement_here(entry, room.processes)
        lack = room.lacks(teacher, placement)
        if lack is None or (recipe.adapts_only and any(room.lacks(teacher, p) is None for p in PLACEMENTS)):
            continue
        precision, cures = _least_precision(entry, recipe), [*room.cures(teacher)]
        if precision == "fp32" and room.lacks(_halved(teacher), placement) is None:
            cures.append("precision: bf16, half of this")
        cures.append("a cache of its outputs, written on a larger machine")
        yield RecipeFault(
            f"{teacher_place(recipe, entry.name)}.placement",
            f"{placement} found, which puts {lack} ({precision} weights alone); use {one_of(cures)}",
        )


def _lack(needed: int, room: float, where: str) -> str | None:
    if needed <= room:
        return None
    return f"{needed / _GIB:,.1f} GiB into {where}, which has {room / _GIB:,.1f}"


def _halved(teacher: PlacedTeacher) -> PlacedTeacher:
    sizes = {name: getattr(teacher, name) // 2 for name in ("whole", "outer", "head", "block", "unit")}
    return replace(teacher, **sizes)


def _least_precision(entry: Teacher, recipe: Recipe) -> Precision:
    return "bf16" if recipe.adapts_only else teacher_precision(entry)


def _placed(entry: Teacher, config: PretrainedConfig, setup: RecipeSetup) -> PlacedTeacher | None:
    """The sizes of a teacher of a known family, in its precision, with the vocabulary of its training."""
    if config.model_type not in ARCHITECTURES:
        return None
    config = deepcopy(config) if entry.adapt is None else with_rows(config, vocabulary_size(setup.tokenizer))
    dtype = torch.bfloat16 if _least_precision(entry, setup.recipe) == "bf16" else torch.float32
    with suppress(Exception), torch.device("meta"):  # loading will say what is wrong with it
        return PlacedTeacher.of(entry.name, entry.placement, untrained_model(config, setup, dtype=dtype))
    return None


def _host_memory() -> float:
    """Bytes of memory and swap that the processes of this machine may have, as far as it is known."""
    known = _kibibytes(Path("/proc/meminfo"))
    if "MemTotal" not in known:
        return inf
    return min(known["MemTotal"], *_group_limits(), inf) + known.get("SwapTotal", 0)


def _kibibytes(file: Path) -> dict[str, int]:
    try:
        lines = [line.split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[2:] == ["kB"]}


def _group_limits(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """The limits of this process's control groups, of both versions of them."""
    found = []
    with suppress(OSError):
        for line in groups.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            name, top = ("memory.limit_in_bytes", root / "memory") if kinds else ("memory.max", root)
            folder = top / path.lstrip("/")
            for place in (folder, *(one for one in folder.parents if one.is_relative_to(top))):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    found.append(int((place / name).read_text()))
    return found
