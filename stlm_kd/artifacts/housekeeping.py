"""The stages in an output folder: what they are, which runs use them, how large they are; and cleaning up."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from stlm_kd.artifacts.atomic import num_bytes, read_plain, remove, unfinished_name, writing
from stlm_kd.artifacts.record import read_record
from stlm_kd.artifacts.run_dir import LOCK, RECIPE, RECORD
from stlm_kd.artifacts.stage_store import DAMAGED, FORMATS, LOCKS, PARTIAL, StageRecord
from stlm_kd.artifacts.uses import USES, known_uses, uses_of
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.notes import note

_NAME = re.compile(rf"\.?((?:{'|'.join(FORMATS)}|tokens)-[0-9a-f]{{12,16}})(\..*)?")
"""A stage's folder; with a suffix, one that is not finished, or that was put aside."""

_STUDENTS_ASIDE = f"*/students/*/.*{DAMAGED}*"
"""Damaged copies of stages that were put aside in runs."""

KEPT_DAYS = 7
"""Unfinished stages that changed within so many days are kept."""

_DAY_S = 24 * 3600

State = Literal["finished", "unfinished", "put aside"]


@dataclass(frozen=True, slots=True)
class StageSummary:
    """A stage in an output folder.

    Attributes:
        path: Its folder.
        state: Whether it is finished; what is put aside was damaged, or is left from a killed process.
        what: What it is to the runs that use it, or was when it was made.
        runs: Names of the runs that use it, sorted.
        bytes: The size of its files.
        freed_bytes: The size of those that no run's folder shares.
        age_days: Days since a file of an unfinished one changed; None for others.
        unknown: Names of the runs that may use it, since their lists of uses cannot be read.
    """

    path: Path
    state: State
    what: tuple[str, ...]
    runs: tuple[str, ...]
    bytes: int
    freed_bytes: int
    age_days: float | None = None
    unknown: tuple[str, ...] = ()


def list_stages(output_dir: str | PathLike[str] = "runs") -> list[StageSummary]:
    """The stages that the runs in a folder share, the largest first.

    Args:
        output_dir: Contains the runs.
    """
    uses: dict[str, Mapping[str, tuple[str, ...]]] = {}
    unknown = []
    for run in _runs(Path(output_dir)):
        try:
            uses[run.name] = _uses(run)
        except CheckpointError as error:
            note(str(error))
            uses[run.name] = known_uses(run)
            unknown.append(run.name)
    found = [replace(_summary(path, uses), unknown=(*unknown,)) for path in _folders(Path(output_dir))]
    return sorted(found, key=lambda stage: (-stage.bytes, str(stage.path)))


def clean_stages(output_dir: str | PathLike[str] = "runs", *, dry_run: bool = False) -> list[StageSummary]:
    """Delete the stages that no run in a folder uses, and return them.

    What a process builds at the moment is kept, what the recipe of a run names by its path, and what is
    unfinished and changed within the last week: commands without a run, such as ``eval``, go on from there.

    Args:
        output_dir: Contains the runs.
        dry_run: Whether nothing is deleted.

    Raises:
        CheckpointError: Which stages a run uses is not known, because an earlier version made it.
        MissingResourceError: A folder cannot be deleted.
    """
    for run in _runs(Path(output_dir)):
        _uses(run)
    unused = [stage for stage in list_stages(output_dir) if not stage.runs]
    return [stage for stage in unused if _delete(stage.path, Path(output_dir), dry_run=dry_run)]


def _runs(output_dir: Path) -> list[Path]:
    return sorted({file.parent for name in (RECORD, USES) for file in output_dir.glob(f"*/{name}")})


def _folders(output_dir: Path) -> Iterator[Path]:
    for root in (output_dir / "stages", output_dir / "stages" / "tokens"):
        yield from (path for path in sorted(root.glob("*")) if _NAME.fullmatch(path.name))
    yield from sorted(output_dir.glob(_STUDENTS_ASIDE))


def _uses(run: Path) -> Mapping[str, tuple[str, ...]]:
    """What each stage is to a run, also those that its recipe names by their paths."""
    digest = None
    with suppress(CheckpointError):  # the run has no record that can be read
        digest = read_record(run / RECORD).files.get(USES)
    found = dict(uses_of(run, digest=digest))
    try:
        recipe = read_plain(run / RECIPE).decode(errors="replace")
    except OSError:
        return found
    for match in re.finditer(rf"{_NAME.pattern}", recipe):
        found.setdefault(match[1], ("named in the recipe",))
    return found


def _summary(path: Path, uses: Mapping[str, Mapping[str, tuple[str, ...]]]) -> StageSummary:
    name, suffix = _parts(path)
    state: State = "finished" if not suffix else "unfinished" if suffix == PARTIAL else "put aside"
    by_run = {} if state == "put aside" else {run: own[name] for run, own in uses.items() if name in own}
    what = dict.fromkeys(word for words in by_run.values() for word in words)
    record = StageRecord.of(path)
    shown = tuple(what) or (record.what if record and record.what else re.sub("-[0-9a-f]{12,16}$", "", name),)
    sizes = num_bytes(path), num_bytes(path, unshared=True)
    age = _age_days(path) if state == "unfinished" else None
    return StageSummary(path, state, shown, (*sorted(by_run),), *sizes, age)


def _age_days(folder: Path) -> float:
    """Days since anything in a folder changed; 0 if it cannot be read."""
    try:
        latest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:  # a process writes to it
        return 0.0
    return (time.time() - latest) / _DAY_S


def _parts(path: Path) -> tuple[str, str]:
    """A stage's name, and what follows it in the name of a folder."""
    match = _NAME.fullmatch(path.name)
    if match is None:  # a damaged copy in a run
        name, _, rest = path.name[1:].partition(DAMAGED)
        return f"{path.parent.name} {name}", f"{DAMAGED}{rest}"
    return match[1], match[2] or ""


def _lock(path: Path, output_dir: Path) -> Path:
    """The lock that a process holds which builds the stage, or works in the run."""
    if _NAME.fullmatch(path.name):
        return path.parent / LOCKS / _parts(path)[0]
    return output_dir / path.relative_to(output_dir).parts[0] / LOCK


def _delete(path: Path, output_dir: Path, *, dry_run: bool) -> bool:
    """Delete a stage unless a process builds it, or a run has begun to use it; return whether it is gone."""
    name, suffix = _parts(path)
    with writing(path), ExitStack() as held:
        lock = _lock(path, output_dir)
        lock.parent.mkdir(exist_ok=True)
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            return False

        def is_used() -> bool:
            return suffix in ("", PARTIAL) and any(name in _uses(run) for run in _runs(output_dir))

        if suffix == PARTIAL and _age_days(path) < KEPT_DAYS:
            return False
        if dry_run or is_used():
            return dry_run
        aside = unfinished_name(path)
        path.rename(aside)
        is_free = False
        try:
            is_free = not is_used()  # a run that found it before the rename has said so by now
        finally:
            if not is_free:
                aside.rename(path)
        if is_free:
            remove(aside)
            if os.path.lexists(aside):
                raise MissingResourceError(
                    f"{aside}: cannot be deleted wholly; make it writable and repeat the command"
                )
        return is_free
