"""The commands on locks: write one for a recipe, and refuse a recipe that differs from its lock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from stlm_kd.artifacts.atomic import write_text, writing
from stlm_kd.artifacts.hashing import sha256
from stlm_kd.artifacts.run_dir import RECIPE, RECORD, show_run
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError, MissingResourceError, RecipeError, RecipeFault, UsageError
from stlm_kd.notes import note
from stlm_kd.pipeline.locks import bare_lock, lock_of, pins_of
from stlm_kd.pipeline.stages.digests import known_stages
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.locate import find, lock_beside, text_of
from stlm_kd.recipe.lock import LOCK_FILE, Drift, Lock, drift, lock_yaml, read_lock
from stlm_kd.sharing.pins import Pins, using


class Written(NamedTuple):
    """The file of a lock, what differs from the lock that was there, and the command that reads it."""

    file: Path
    moved: list[Drift]
    command: str


def lock_recipe(
    recipe: str, destination: str | Path | None = None, *, output_dir: str | Path = "runs"
) -> Written:
    """Write the lock of a recipe, or copy that of a finished run.

    Args:
        recipe: A file, folder, address or built-in name; or a run's folder, or its name in ``output_dir``.
        destination: The file to write; None: ``recipe.lock`` beside the recipe, for a run in the current
            folder.
        output_dir: Contains runs.

    Raises:
        MissingResourceError: A name cannot be resolved, or the file not written.
        RecipeError: The recipe is invalid, or the file is no lock, unless its name is that of locks.
        CheckpointError: The run is not finished, or its lock is missing or was changed.
        UsageError: In place of the lock of a run there is that of another recipe.
    """
    run = _run_of(recipe, Path(output_dir))
    if run is not None:
        target, text = Path(destination or LOCK_FILE), _lock_of_run(run)
        lock = read_lock(text, origin=str(run / LOCK_FILE))
    else:
        source = find(recipe)
        target = source.path.with_name(LOCK_FILE) if destination is None else Path(destination)
        if destination is None and source.folder is not None:
            raise MissingResourceError(
                f"{recipe}: a fetched recipe is not changed; give a file: -o {LOCK_FILE}"
            )
        lock = lock_of(load(recipe))
        text = lock_yaml(lock)
    before = _lock_at(target)
    if run is not None and destination is None and before is not None and before.recipe != lock.recipe:
        raise UsageError(f"{target.absolute()}: the lock of another recipe is there; give a file: -o FILE")
    with writing(target, "-o"):
        write_text(target, text)
    return Written(target, [] if before is None else drift(before, lock), _use(recipe, run, target))


def _use(recipe: str, run: Path | None, target: Path) -> str:
    """The command that reads the lock of a recipe or run that was written to ``target``."""
    if run is not None:
        return f"stlm-kd distill -r {quote(str(run))} --locked"  # whose folder has the same lock
    source = find(recipe)
    command, beside = f"stlm-kd distill -r {quote(recipe)} --locked", source.path.with_name(LOCK_FILE)
    if source.folder is not None:
        command = f"stlm-kd recipe pull {quote(recipe)} COPY && cp {quote(str(target))} COPY/{LOCK_FILE} && "
        return f"{command}stlm-kd distill -r COPY --locked"
    if target.resolve() == beside.resolve():
        return command
    return f"cp {quote(str(target))} {quote(str(beside))} && {command}"


def _lock_at(target: Path) -> Lock | None:
    """The lock in a file that will be replaced; None if there is none, or one that cannot be read."""
    try:
        return read_lock(text_of(target), origin=str(target)) if target.is_file() else None
    except RecipeError as error:
        if target.name != LOCK_FILE:
            raise
        note(f"{target}: the lock that was there cannot be read ({error.faults[0]}), and is replaced")
        return None


def _run_of(name: str, output_dir: Path) -> Path | None:
    """The folder of the run that is meant; None for a recipe."""
    path = Path(name)
    folders = (path.parent if path.name == RECIPE else path, output_dir / name)
    return next((folder for folder in folders if (folder / RECORD).is_file()), None)


def _lock_of_run(run: Path) -> str:
    """The text of a finished run's lock; CheckpointError if there is none, or another than it wrote."""
    record, file = show_run(run).record, run / LOCK_FILE
    if record.status != "done":
        raise CheckpointError(f"{run}: {record.status}, so it has no lock; finish it with its command")
    if record.lock is None or not file.is_file():
        raise CheckpointError(
            f"{run}: done, but without a {LOCK_FILE}; repeat its command, which reuses stages and writes it"
        )
    if record.lock != f"sha256:{sha256(file)}":
        raise CheckpointError(f"{file}: changed since the run was done; repeat its command, which writes it")
    return text_of(file)


@contextmanager
def locked(recipe: str, loaded: Recipe, *, frozen: bool = False) -> Iterator[None]:
    """Within the block, everything on the Hub is read as the lock beside a recipe says.

    Names that have moved on the Hub are used as locked, and a line says so, as it does of other versions of
    libraries. Names that the lock lacks are refused, as are files with other hashes.

    Args:
        recipe: The recipe's name; its lock lies beside it.
        loaded: The recipe.
        frozen: Whether the Hub is not asked what the names mean by now.

    Raises:
        MissingResourceError: There is no lock, a name is not in it, or one of its commits is neither on the
            Hub nor in the cache.
        RecipeError: The lock is invalid, or content differs from it; holds all differences.
    """
    source = find(recipe)
    lock = lock_beside(source)
    if lock is None:
        raise MissingResourceError(
            f"{recipe}: no {LOCK_FILE} beside it; make one: stlm-kd recipe lock {recipe}"
        )
    name = f"{LOCK_FILE} of {source.origin}"
    with using(pins_of(lock, name, frozen=frozen)) as pins:
        on_main_process(lambda: _require(lock, loaded, pins))
        yield


def _require(lock: Lock, recipe: Recipe, pins: Pins) -> None:
    """Refuse a recipe whose content differs from a lock; tell other versions."""
    facts = bare_lock(recipe)
    try:
        facts = lock_of(recipe)
    except MissingResourceError:
        if not any(one.refuses for one in drift(lock, facts)):  # the same recipe
            raise
    found = drift(lock, facts)
    if lock.stages and not any(one.refuses for one in found):
        stages = {**lock.stages, **known_stages(recipe)}
        found = drift(lock, replace(facts, stages={place: stages[place] for place in lock.stages}))
    if refused := [one for one in found if one.refuses]:
        faults = [RecipeFault(one.place, str(one).partition(": ")[2] + _cure(one)) for one in refused]
        raise RecipeError(pins.lock, faults)
    for one in found:
        if one.level == "code":
            note(f"{LOCK_FILE}: {one}")


def _cure(one: Drift) -> str:
    """What to do where two hashes alone say little."""
    if one.place != "recipe":
        return ""
    return (
        "; another recipe, or changed on the command line: leave out the changes, or write them to the "
        "recipe and lock it again: stlm-kd recipe lock"
    )
