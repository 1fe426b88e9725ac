"""The run folder: lock, record, listing, details, and the model that a run's name stands for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from stlm_kd.artifacts.atomic import clear_unfinished, in_the_way, num_bytes, read_plain, writing
from stlm_kd.artifacts.hashing import first_change, hashes_of, sha256
from stlm_kd.artifacts.json_io import AGAIN
from stlm_kd.artifacts.provenance import DIRTY
from stlm_kd.artifacts.record import (
    Pinned,
    Record,
    Status,
    TeacherPrecision,
    new_record,
    now,
    read_record,
    write_record,
)
from stlm_kd.artifacts.stage_store import READ
from stlm_kd.artifacts.uses import USES
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.lazy import filelock

RECIPE, RECORD, LOCK = "recipe.yaml", "run.json", ".lock"
LOCK_FILE = "recipe.lock"
"""What a finished run used; see ``stlm_kd.recipe.lock``."""

_STUDENTS = "students/*/seed-*"
_FILES = (
    RECIPE, USES, "*.json", "table.txt", "teachers/*/*", "making/*/*/*", f"{_STUDENTS}/*",
    f"{_STUDENTS}/model/*",
)  # fmt: skip
_KINDS = {*READ, ".yaml", ".log"}
"""The files of a run that other commands read, apart from its record and lock, and their kinds."""

_PATIENCE = 1.0
"""Seconds to wait for the lock, which commands that list runs hold briefly."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run folder and its record; ``finish`` and ``restart`` write the record and return the new value."""

    path: Path
    record: Record

    def restart(self, command: str, code: str | None = None) -> RunFolder:
        """Record the run as running, with this command, code and package versions, without a lock."""
        self._lock.unlink(missing_ok=True)
        again = new_record(self.record.name, self.record.recipe_hash, command)
        old = self.record
        is_dirty = old.code is not None and old.code.endswith(DIRTY)
        code = old.code if is_dirty else code  # the run keeps what changed code made
        kept = {name: getattr(old, name) for name in ("started", "pins", "paths", "teacher_precision")}
        return self._write(replace(again, **kept, code=code))

    def keep_precision(self, precision: TeacherPrecision | None) -> RunFolder:
        """Record the precision of teachers that the run uses where its recipe leaves it open."""
        return self._write(replace(self.record, teacher_precision=precision))

    def keep_pins(self, pins: Sequence[Pinned]) -> RunFolder:
        """Record the commits that the run uses, so that it keeps them however it ends."""
        return self._write(replace(self.record, pins=tuple(pins)))

    def finish(self, status: Status, message: str = "", *, pins: Sequence[Pinned] = ()) -> RunFolder:
        """Record how the run ended, the commits that it used, and the hashes of its files, if it is done."""
        files: dict[str, str] = {}
        if status == "done":
            found = (path for pattern in _FILES for path in self.path.glob(pattern))
            kept = (path for path in found if path.suffix in _KINDS and path.name != RECORD)
            files = hashes_of(self.path, (path for path in kept if path.is_file()))
        else:
            self._lock.unlink(missing_ok=True)
        lock = f"sha256:{sha256(self._lock)}" if self._lock.is_file() else None
        return self._write(
            replace(
                self.record,
                status=status,
                message=message,
                finished=now(),
                pins=tuple(pins),
                lock=lock,
                files=files,
            )
        )

    @property
    def _lock(self) -> Path:
        return self.path / LOCK_FILE

    def _write(self, record: Record) -> RunFolder:
        if not (self.path / RECORD).is_file():  # a record alone would be a run without a recipe
            raise MissingResourceError(
                f"{self.path}: removed while this command worked in it; repeat the command, which makes it "
                "again"
            )
        write_record(self.path / RECORD, record)
        return RunFolder(self.path, record)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of ``runs list``; ``bytes`` includes the weights that the folder shares with stages."""

    path: Path
    name: str
    status: str
    started: str
    finished: str | None
    recipe_hash: str
    bytes: int


@dataclass(frozen=True, slots=True)
class RunDetails:
    """Details of a run: record, resolved recipe, and table and models if available."""

    path: Path
    record: Record
    recipe_yaml: str
    table: str | None
    models: tuple[Path, ...]


def file_name(name: str) -> str:
    """A name that is safe for files: at most 64 letters, digits, dots, dashes and underscores.

    >>> file_name("my recipe/α")
    'my-recipe'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:64] or "run"


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Create a run folder if necessary and lock it for this command; a crash releases the lock.

    Raises:
        CheckpointError: Another command holds the lock.
        MissingResourceError: The folder is not writable.
    """
    lock = filelock.FileLock(path / LOCK, timeout=_PATIENCE)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise CheckpointError(
                f"{path}: another process works in this run's folder; wait until it has ended, or stop it, "
                "and give the command again"
            ) from error
    try:
        clear_unfinished(path)
        yield
    finally:
        lock.release()


def _with_current_status(path: Path, record: Record) -> Record:
    """The record, with status ``killed`` if it says ``running`` but the process is gone."""
    if record.status != "running" or not (path / LOCK).is_file():
        return record
    try:
        with filelock.FileLock(path / LOCK, timeout=0):
            return replace(record, status="killed")
    except (filelock.Timeout, OSError):  # locked, or read-only
        return record


def open_run(path: Path) -> RunFolder:
    """Open an existing run folder.

    Raises:
        MissingResourceError: The folder does not exist.
        CheckpointError: It is not a run folder, or its record is damaged.
    """
    if not os.path.isdir(path):  # noqa: PTH112  # long names
        raise MissingResourceError(f"{path}: no such run folder; see stlm-kd runs list")
    if not os.path.lexists(path / RECORD):
        raise CheckpointError(
            f"{path}: no {RECORD} in it, so it is not a run's folder; see stlm-kd runs list"
        )
    return RunFolder(path, read_record(path / RECORD))


def list_runs(output_dir: str | PathLike[str] = "runs") -> list[RunSummary]:
    """The runs in a folder, latest first; damaged ones have the status ``damaged``.

    Args:
        output_dir: Contains the runs.
    """
    found = [_summary(path.parent) for path in sorted(Path(output_dir).glob(f"*/{RECORD}"))]
    return sorted(found, key=lambda run: run.started, reverse=True)


def show_run(path: Path) -> RunDetails:
    """Read the details of a run.

    Raises:
        MissingResourceError, CheckpointError: As ``open_run``.
    """
    run = open_run(path)
    table = path / "table.txt"
    patterns = ("students/*/seed-*/model/config.json", "teachers/*/config.json")
    models = [config.parent for pattern in patterns for config in sorted(path.glob(pattern))]
    try:
        text = read_plain(path / RECIPE).decode()
        shown = read_plain(table).decode() if table.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        way = in_the_way(error) if isinstance(error, OSError) else None
        fault = way or f"{path}: {RECIPE} or table.txt cannot be read ({error}); move it away"
        raise CheckpointError(f"{fault}, and repeat the run's command") from error
    known = {name: digest for name, digest in run.record.files.items() if name == table.name}
    if shown is not None and (change := first_change(path, known)):
        raise CheckpointError(f"{path}/{change} since this run was completed; {AGAIN}")
    return RunDetails(path, _with_current_status(path, run.record), text, shown, tuple(models))


def model_of(name: str) -> str:
    """Resolve a name to a model folder or Hub id; a run resolves to its first student or only teacher.

    Raises:
        MissingResourceError: The run has no finished model.
    """
    folder = Path(name)
    if os.path.lexists(folder / RECORD):
        models = show_run(folder).models
        if not models:
            raise MissingResourceError(
                f"{name}: no finished model in this run; finish it with the command that began it"
            )
        own = [model for model in models if model.parent.parent.name == "student"]
        return str((own or models)[0])
    if not os.path.isfile(folder / "config.json") and os.path.isfile(folder / "model" / "config.json"):  # noqa: PTH113
        return str(folder / "model")
    return name


def _summary(path: Path) -> RunSummary:
    try:
        record = _with_current_status(path, read_record(path / RECORD))
    except CheckpointError:
        return RunSummary(path, path.name, "damaged", "", None, "", num_bytes(path))
    times = (record.started, record.finished)
    return RunSummary(path, record.name, record.status, *times, record.recipe_hash, num_bytes(path))


TRAINING, ADAPTATION = "training", "adaptation"
KEPT = ("report.json", "metrics.jsonl")


def provenance_folder(run: Path) -> Path:
    """The folder of teachers' reports, with subfolders by teacher and by training or adaptation."""
    return run / "making"
