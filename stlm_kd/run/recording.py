"""A run's record while it runs: how it ended is written down, whatever ended it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from stlm_kd.engine.launched import first_process_runs
from stlm_kd.errors import Interrupted, Preempted
from stlm_kd.recipe import Recipe
from stlm_kd.run.folder import RunFolder, create, folder_of, held


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
        EnvironmentFault: It cannot be written.
        Interrupted, Preempted: Ctrl-C or SIGTERM came, between trainings or within one.
    """
    with held(folder_of(recipe, name=name, output_dir=output_dir)):
        run = create(recipe, name=name, output_dir=output_dir, command=command).restart(command)
        with _ending_recorded(run):
            yield run.path


@contextmanager
def recorded_once(recipe: Recipe, *, name: str, output_dir: Path, command: str) -> Iterator[Path]:
    """The same where several processes run the command together: the first of them keeps the record."""
    with ExitStack() as held:
        record = recorded(recipe, name=name, output_dir=output_dir, command=command)
        yield first_process_runs(lambda: held.enter_context(record))


@contextmanager
def _ending_recorded(run: RunFolder) -> Iterator[None]:
    """Mark the run as done, interrupted or failed when the block ends."""
    try:
        with _stoppable():
            yield
    except (Interrupted, Preempted) as ending:
        run.finish("interrupted", str(ending))
        raise
    except KeyboardInterrupt as ending:
        run.finish("interrupted", "Ctrl-C")
        raise Interrupted(
            "stopped by Ctrl-C between trainings; the same command goes on from there"
        ) from ending
    except BaseException as error:
        run.finish("failed", f"{type(error).__name__}: {error}")
        raise
    run.finish("done")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Between trainings, SIGTERM ends the run in an orderly way too.

    Outside the main thread it does nothing, since only the main thread may set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Preempted("stopped by SIGTERM between trainings; the same command goes on from there")

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
