"""A run's folder: made for one recipe, found again by its hash, refused for any other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from stlm_kd.disk import clear_unfinished
from stlm_kd.errors import CheckpointError, EnvironmentFault
from stlm_kd.recipe import Recipe, hash_of, load, plain, recipe_hash, resolved_yaml
from stlm_kd.recipe.tree import Malformed, Plain, parse
from stlm_kd.run.record import Record, Status, new_record, now, read_record, write_json, write_text

RECIPE, RECORD, LOCK = "recipe.yaml", "run.json", ".lock"
_PATIENCE = 1.0
"""Seconds that a command waits for the lock, which those that list runs hold for a moment."""


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run's folder, also one that newer rules refuse to train by.

    Raises:
        EnvironmentFault: It is not there.
        RecipeError: It is not one that this version understands.
    """
    return load(str(run / RECIPE), is_stored=True)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A run's folder and its record; ``finish`` and ``restart`` write the record and give the new value."""

    path: Path
    record: Record

    def restart(self, command: str) -> RunFolder:
        """Mark the run as running, by this command and these package versions."""
        again = new_record(self.record.name, self.record.recipe_hash, command)
        return self._write(replace(again, started=self.record.started))

    def finish(self, status: Status, message: str = "") -> RunFolder:
        """Mark how the run ended."""
        return self._write(replace(self.record, status=status, message=message, finished=now()))

    def _write(self, record: Record) -> RunFolder:
        write_json(self.path / RECORD, asdict(record))
        return RunFolder(self.path, record)


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of ``runs list``."""

    path: Path
    name: str
    status: str
    started: str
    finished: str | None
    recipe_hash: str


@dataclass(frozen=True, slots=True)
class RunDetails:
    """What is known of a run: its record, its resolved recipe, and its results where it has them."""

    path: Path
    record: Record
    recipe_yaml: str
    table: str | None
    models: tuple[Path, ...]


def folder_of(recipe: Recipe, *, name: str, output_dir: Path) -> Path:
    """Where the run of a recipe lies: ``<output_dir>/<name>-<first 8 digits of the recipe's hash>``."""
    return output_dir / f"{file_name(name)}-{recipe_hash(recipe)[:8]}"


def file_name(name: str) -> str:
    """A name that is safe as a file's: letters, digits, dots, dashes and underscores, at most 64.

    >>> file_name("my recipe/α")
    'my-recipe'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:64] or "run"


def create(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> RunFolder:
    """The folder of a recipe's run, made with its recipe and record, or opened where it is there already.

    Raises:
        CheckpointError: The folder is that of another recipe; the message says what differs.
        EnvironmentFault: It cannot be written.
    """
    path = folder_of(recipe, name=name, output_dir=output_dir)
    if (path / RECORD).is_file():
        return open_for(recipe, path)
    record = new_record(name, recipe_hash(recipe), command)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / RECIPE, resolved_yaml(recipe))
        write_json(path / RECORD, asdict(record))
    return RunFolder(path, record)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Work in a run's folder, which is made if need be, with no other command in it; a crash lets it go.

    Raises:
        CheckpointError: Another command works there.
        EnvironmentFault: It cannot be written.
    """
    lock = FileLock(path / LOCK, timeout=_PATIENCE)
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise CheckpointError(
                f"{path}: another process works in this run's folder; wait until it has ended, or stop it, "
                "and give the command again"
            ) from error
    try:
        clear_unfinished(path)
        yield
    finally:
        lock.release()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EnvironmentFault(
            f"{path}: cannot be written ({reason}); choose another --output-dir"
        ) from error


def _seen(path: Path, record: Record) -> Record:
    """The record, unless it still says that a run is running whose process is gone."""
    if record.status != "running" or not (path / LOCK).is_file():
        return record
    try:
        with FileLock(path / LOCK, timeout=0):
            return replace(record, status="killed")
    except (Timeout, OSError):  # held, or in a place where one may only read
        return record


def open_run(path: Path) -> RunFolder:
    """A run's folder that is there.

    Raises:
        EnvironmentFault: No such folder.
        CheckpointError: It is not a run's folder, or its record is damaged.
    """
    if not path.is_dir():
        raise EnvironmentFault(f"{path}: no such run folder; see stlm-kd runs list")
    if not (path / RECORD).is_file():
        raise CheckpointError(
            f"{path}: no {RECORD} in it, so it is not a run's folder; see stlm-kd runs list"
        )
    return RunFolder(path, read_record(path / RECORD))


def open_for(recipe: Recipe, path: Path) -> RunFolder:
    """A run's folder that is there and belongs to this recipe.

    Raises:
        EnvironmentFault: No such folder.
        CheckpointError: It is another recipe's, or is damaged; the message says what differs.
    """
    found = open_run(path)
    saved = _saved_recipe(path)
    if found.record.recipe_hash == recipe_hash(recipe) == hash_of(saved):
        return found
    changes = differences(saved, plain(recipe))
    shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    raise CheckpointError(
        f"{path}: the run of another recipe ({shown or 'its record names another hash'}); "
        "choose another --output-dir, or move the folder away"
    )


def differences(before: Plain, after: Plain, place: str = "") -> list[str]:
    """What differs between two recipes' plain values, one phrase for each place."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for key in sorted({*before, *after}):
            inner = f"{place}.{key}" if place else key
            found += differences(before.get(key), after.get(key), inner)
        return found
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [phrase for i, pair in pairs for phrase in differences(*pair, f"{place}[{i}]")]
    return [] if before == after else [f"{place} is {_short(before)} there and {_short(after)} here"]


def list_runs(output_dir: Path) -> list[RunSummary]:
    """The runs below a folder, the latest start first; a damaged one is listed as such."""
    if not output_dir.is_dir():
        return []
    found = [_summary(path.parent) for path in sorted(output_dir.glob(f"*/{RECORD}"))]
    return sorted(found, key=lambda run: run.started, reverse=True)


def show_run(path: Path) -> RunDetails:
    """What is known of a run.

    Raises:
        EnvironmentFault, CheckpointError: As ``open_run``.
    """
    run = open_run(path)
    table = path / "table.txt"
    patterns = ("students/*/seed-*/model/config.json", "teachers/*/config.json")
    models = [config.parent for pattern in patterns for config in sorted(path.glob(pattern))]
    try:
        text = (path / RECIPE).read_text(encoding="utf-8")
        shown = table.read_text(encoding="utf-8") if table.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: {RECIPE} or table.txt cannot be read ({error})") from error
    return RunDetails(path, _seen(path, run.record), text, shown, tuple(models))


def _saved_recipe(path: Path) -> Plain:
    try:
        return parse((path / RECIPE).read_text(encoding="utf-8")).plain()
    except (OSError, UnicodeDecodeError, Malformed) as error:
        raise CheckpointError(f"{path / RECIPE}: damaged ({error}); move the folder away") from error


def _summary(path: Path) -> RunSummary:
    try:
        record = _seen(path, read_record(path / RECORD))
    except CheckpointError:
        return RunSummary(path, path.name, "damaged", "", None, "")
    return RunSummary(path, record.name, record.status, record.started, record.finished, record.recipe_hash)


def _short(value: Plain) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
