"""A run's record while it runs: how it ended is written down, whatever ended it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from stlm_kd.artifacts.atomic import full_disk_as_error
from stlm_kd.artifacts.run_dir import RunFolder, held
from stlm_kd.distributed import launched_processes, on_main_process, process_rank
from stlm_kd.errors import Interrupted, Preempted, RemoteProcessError, StlmKdError
from stlm_kd.pipeline.recipe_folder import create, folder_of
from stlm_kd.recipe import Recipe

_PEER_GONE = ("closed by peer", "reset by peer", "Broken pipe")
"""How Gloo says that another process ended."""


@contextmanager
def recorded(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> Iterator[Path]:
    """The folder of a recipe's run, for this command alone; when the block ends, its record says how.

    Args:
        recipe: The recipe.
        name: The run's name.
        output_dir: Holds all runs.
        command: As typed, for the record.

    Raises:
        CheckpointError: Another command works there, or the folder is another recipe's.
        MissingResourceError: It cannot be written.
        Interrupted, Preempted: Ctrl-C or SIGTERM came, between trainings or within one.
    """
    path = folder_of(recipe, name=name, output_dir=output_dir)
    with held(path), full_disk_as_error(path):
        run = create(recipe, name=name, output_dir=output_dir, command=command).restart(command)
        with _ending_recorded(run), full_disk_as_error(path):
            yield run.path


@contextmanager
def recorded_once(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> Iterator[Path]:
    """The same where several processes run the command together: the first of them keeps the record.

    Between trainings signals are the first one's to act on; it takes the others with it.

    Raises:
        RemoteProcessError: Another process ended, and says why.
    """
    with _losses_named(), ExitStack() as held:
        record = recorded(recipe, name=name, output_dir=output_dir, command=command)
        path = on_main_process(lambda: held.enter_context(record))
        if process_rank() > 0:  # not before the first one is there to listen
            held.enter_context(_deaf())
        yield path


@contextmanager
def _losses_named() -> Iterator[None]:
    """What a process meets that shared its work with one that is no more."""
    try:
        yield
    except RuntimeError as error:
        nccl = type(error).__name__ == "DistBackendError"
        if launched_processes() > 1 and (nccl or any(words in str(error) for words in _PEER_GONE)):
            raise RemoteProcessError(StlmKdError.exit_code) from error
        raise


class _Terminated(BaseException):
    """SIGTERM came; like ``KeyboardInterrupt`` it passes by what catches every exception."""


@contextmanager
def _ending_recorded(run: RunFolder) -> Iterator[None]:
    """Mark the run as done, interrupted or failed when the block ends."""
    try:
        with _stoppable():
            yield
    except (Interrupted, Preempted, _Terminated, KeyboardInterrupt) as raised:
        ending = _first_ending(raised)
        with _deaf():
            run.finish("interrupted", str(ending))
        raise ending from None
    except BaseException as error:
        with suppress(OSError):  # on a full disk the record stays as it is, and the error is told
            run.finish("failed", f"{type(error).__name__}: {error}")
        raise
    run.finish("done")


def _first_ending(raised: BaseException) -> Interrupted | Preempted:
    """What stopped the run first: another signal may come while a training's error is on its way."""
    for error in (raised, raised.__context__):
        if isinstance(error, Interrupted | Preempted):
            return error
    if isinstance(raised, KeyboardInterrupt):
        return Interrupted("stopped by Ctrl-C between trainings; the same command goes on from there")
    return Preempted("stopped by SIGTERM between trainings; the same command goes on from there")


@contextmanager
def _deaf() -> Iterator[None]:
    """While it is entered, SIGINT and SIGTERM are ignored but in trainings, which all stop alike."""
    in_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if in_main else ()
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Between trainings, SIGTERM ends the run in an orderly way too.

    Outside the main thread it does nothing, since only the main thread may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
