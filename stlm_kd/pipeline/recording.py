"""The run folder of a recipe, identified by the recipe's hash, and the record of how the run ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import read_plain, storage_as_error, write_text, writing
from stlm_kd.artifacts.provenance import program
from stlm_kd.artifacts.record import TeacherPrecision, new_record, write_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD, RunFolder, file_name, held, open_run
from stlm_kd.artifacts.uses import begin_uses, complete_uses
from stlm_kd.distributed import (
    before_the_end,
    launched_processes,
    lost_process,
    on_main_process,
    process_rank,
    remote_error,
    require_same,
)
from stlm_kd.errors import CheckpointError, Interrupted, Preempted, RemoteProcessError, StlmKdError
from stlm_kd.notes import note
from stlm_kd.pipeline.builders.models import device_precision, open_precision
from stlm_kd.pipeline.checks.requirements import missing_here
from stlm_kd.recipe import Recipe, hash_of, paths_of, plain, recipe_hash, resolved_yaml, without_engine
from stlm_kd.recipe.differences import differences
from stlm_kd.recipe.yaml import Plain, YamlError, parse
from stlm_kd.sharing.pins import Pins, current, from_json, of_command, using
from stlm_kd.training.deadline import Deadline
from stlm_kd.training.signals import handled
from stlm_kd.watchdog import Ending

_PEER_GONE = ("closed by peer", "reset by peer", "Broken pipe")
"""Gloo's error messages after another process ended."""


def folder_of(recipe: Recipe, *, name: str, output_dir: Path) -> Path:
    """The run folder of a recipe: ``<output_dir>/<name>-<first 8 digits of the recipe's hash>``."""
    return output_dir / f"{file_name(name)}-{recipe_hash(recipe)[:8]}"


def create(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> RunFolder:
    """Create a recipe's run folder with recipe and record, or open the existing one.

    Raises:
        CheckpointError: The folder belongs to another recipe; the message lists the differences.
    """
    path = folder_of(recipe, name=name, output_dir=output_dir)
    if (path / RECORD).is_file():
        found = open_for(recipe, path)
        return replace(found, record=replace(found.record, paths=paths_of(recipe)))
    record = replace(new_record(name, recipe_hash(recipe), command), paths=paths_of(recipe))
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / RECIPE, resolved_yaml(recipe))
        begin_uses(path, created=True)  # before the record: what is a run says what it uses
        write_record(path / RECORD, record)
    return RunFolder(path, record)


def open_for(recipe: Recipe, path: Path) -> RunFolder:
    """Open the existing run folder of this recipe.

    Raises:
        MissingResourceError, CheckpointError: It does not exist, is damaged or belongs to another recipe.
    """
    found = open_run(path)
    saved = _saved_recipe(path)
    if found.record.recipe_hash == recipe_hash(recipe) == hash_of(without_engine(saved)):
        return found
    changes = [
        f"{place} is {_truncated(there)} there and {_truncated(here)} here"
        for place, there, here in differences(saved, plain(recipe))
    ]
    listed = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
    raise CheckpointError(
        f"{path}: the run of another recipe ({listed or 'its record names another hash'}); "
        "choose another --output-dir, or move the folder away"
    )


@contextmanager
def recorded(
    recipe: Recipe, *, name: str, output_dir: Path, command: str, update: bool = False
) -> Iterator[Path]:
    """Lock a recipe's run folder and yield it; record how the block ended and the commits that it used.

    Args:
        recipe: The recipe.
        name: The run's name.
        output_dir: Contains all runs.
        command: The command line, for the record.
        update: Whether to follow names on the Hub that have moved since the run's last start.

    Raises:
        CheckpointError: Another command holds the folder, or it belongs to another recipe.
        MissingResourceError: The folder is not writable.
        Interrupted, Preempted: Ctrl-C or SIGTERM was received, between trainings or during one.
    """
    path = folder_of(recipe, name=name, output_dir=output_dir)
    code = program().code  # as it is now: its files may change before the lock is written
    with held(path), storage_as_error(path):
        run = create(recipe, name=name, output_dir=output_dir, command=command).restart(command, code)
        if hash_of(_saved_recipe(path)) != hash_of(plain(recipe)):
            write_text(path / RECIPE, resolved_yaml(recipe))  # with the engine of this start
        outer = of_command()
        begin_uses(run.path)
        own = Pins(run.record.pins, moved="update" if update else "keep", outer=outer)
        pins = outer if outer is not None and outer.lock else own
        pins.teacher_precision = pins.teacher_precision or run.record.teacher_precision
        with using(pins):
            run = run.keep_precision(_pinned_precision(recipe))
            with _ending_recorded(run), storage_as_error(path):
                yield run.path


def _pinned_precision(recipe: Recipe) -> TeacherPrecision | None:
    """The precision that the command's pins state from now on for teachers whose recipe leaves it open."""
    found = current().teacher_precision = open_precision(recipe)
    if found not in (None, device_precision()):
        origin = current().lock or "the record of this run's first start"
        note(f"teachers: {found} weights, as in {origin}; the default here is {device_precision()}")
    return found


@contextmanager
def recorded_once(
    recipe: Recipe, *, name: str, output_dir: Path, command: str, update: bool = False
) -> Iterator[Path]:
    """Like ``recorded`` for a command in several processes: the main process keeps the record and the pins.

    Between trainings only the main process handles signals, and it stops the others.

    Raises:
        RemoteProcessError: Another process ended; it reports the reason.
    """
    with doing(name), _lost_process_as_error(), ExitStack() as held:
        require_same(recipe=hash_of(plain(recipe)))
        record = recorded(recipe, name=name, output_dir=output_dir, command=command, update=update)
        path = on_main_process(lambda: held.enter_context(record))
        if process_rank() > 0:  # only once the main process handles signals
            held.enter_context(handled(signal.SIG_IGN, signal.SIGINT))  # trainings set their own handlers
            held.enter_context(Deadline(lambda: _BETWEEN))  # tells the main process of SIGTERM
            held.enter_context(handled(lambda *_: None, signal.SIGTERM))
        if launched_processes() > 1:
            pinned = on_main_process(lambda: _all_pins(recipe))
            if process_rank() > 0:
                held.enter_context(using(from_json(pinned, "the pins of the main process")))
        yield path


def _all_pins(recipe: Recipe) -> str:
    """The pins of all names of a recipe, for the other processes."""
    missing_here(recipe)  # the faults are raised where the names are used
    return current().as_json()


def keep_pins(path: Path) -> None:
    """Record the commits that a run has used so far, so that it keeps them even if it is killed."""
    open_run(path).keep_pins(current().records(earlier=True))


@contextmanager
def _lost_process_as_error() -> Iterator[None]:
    """Turn communication errors caused by an ended process into ``RemoteProcessError``."""
    try:
        yield
    except RuntimeError as error:
        if _is_lost_connection(error):
            raise remote_error() from error
        if launched_processes() > 1 and "Timed out" in str(error):
            raise StlmKdError(
                f"process {process_rank()}: another one did not answer ({str(error).splitlines()[0]}); "
                "the same command resumes from the last checkpoint"
            ) from error
        raise


def _is_lost_connection(error: BaseException) -> bool:
    is_nccl = type(error).__name__ == "DistBackendError"
    known = isinstance(error, RemoteProcessError) or any(words in str(error) for words in _PEER_GONE)
    return launched_processes() > 1 and (is_nccl or known)


_BETWEEN = "stopped by SIGTERM between trainings; the same command resumes from there"


class _Terminated(BaseException):
    """SIGTERM was received; like ``KeyboardInterrupt``, not caught by ``except Exception``."""


@contextmanager
def _ending_recorded(run: RunFolder) -> Iterator[None]:
    """Record the run as done, interrupted or failed when the block ends."""
    pins = current()

    def end(status: Ending, message: str) -> None:
        run.finish(status, message, pins=pins.records(earlier=True))

    deadline = Deadline(lambda: _BETWEEN)
    try:
        with before_the_end(end), deadline, handled(_terminate, signal.SIGTERM):  # between trainings
            yield
    except (Interrupted, Preempted, _Terminated, KeyboardInterrupt) as raised:
        ending = _first_ending(raised)
        with handled(signal.SIG_IGN):
            run.finish("interrupted", str(ending), pins=current().records(earlier=True))
        raise ending from None
    except BaseException as error:
        with suppress(OSError):  # on a full disk the record stays unchanged and the error is raised
            lost = lost_process() if _is_lost_connection(error) else None
            message = str(lost or f"{type(error).__name__}: {error}")
            run.finish("failed", message, pins=current().records(earlier=True))
        raise
    complete_uses(run.path)  # before the record, which has its hash
    run.finish("done", pins=current().records())


def _first_ending(raised: BaseException) -> Interrupted | Preempted:
    """The first stop request: another signal may arrive while a training's error propagates."""
    for error in (raised, raised.__context__):
        if isinstance(error, Interrupted | Preempted):
            return error
    if isinstance(raised, KeyboardInterrupt):
        return Interrupted("stopped by Ctrl-C between trainings; the same command resumes from there")
    return Preempted(_BETWEEN)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _saved_recipe(path: Path) -> Plain:
    try:
        return parse(read_plain(path / RECIPE).decode()).plain()
    except (OSError, UnicodeDecodeError, YamlError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path / RECIPE}: damaged ({reason}); move the folder away") from error


def _truncated(value: Plain) -> str:
    text = "not given" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
