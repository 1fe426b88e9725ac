"""SIGINT and SIGTERM as stop requests, handled after the current optimizer step.

SIGTERM has a deadline (``training.deadline``): a step that would last too long is dropped.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeAlias

from stlm_kd.distributed import process_rank, training_has_ended
from stlm_kd.errors import Interrupted, Preempted, StlmKdError
from stlm_kd.training.deadline import Deadline

_SIGNALS = [signal.SIGINT, signal.SIGTERM]
StopFlags: TypeAlias = tuple[float, float]
"""One number per signal, SIGINT and SIGTERM; nonzero if received."""


@contextmanager
def handled(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    """Handle these signals (SIGINT and SIGTERM if none are given) with ``handler`` within the block.

    Does nothing outside the main thread, since only the main thread may set handlers.
    """
    in_main = threading.current_thread() is threading.main_thread()
    chosen = (numbers or (signal.SIGINT, signal.SIGTERM)) if in_main else ()
    previous = {number: signal.signal(number, handler) for number in chosen}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


class StopSignals:
    """Context that records SIGINT and SIGTERM, as by ``handled``; a third SIGINT interrupts immediately.

    Restores the previous handlers at the end, and passes them a signal that arrived too late for the loop.
    ``newest`` gives the newest checkpoint, for the message where SIGTERM leaves no time to save.
    """

    def __init__(self, newest: Callable[[], Path | None] = lambda: None) -> None:
        self._received: list[int] = []
        self._handled = ExitStack()
        self.deadline = Deadline(
            lambda: f"stopped by SIGTERM without time to save; the same command {_resumes(newest())}"
        )

    def __enter__(self) -> StopSignals:
        self._handled.enter_context(self.deadline)
        self._handled.enter_context(handled(self._note, *_SIGNALS))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._handled.close()
        training_has_ended()
        if kind is None and self._received:
            signal.raise_signal(min(self._received))

    @property
    def flags(self) -> StopFlags:
        """The signals that this process has received."""
        return float(signal.SIGINT in self._received), float(signal.SIGTERM in self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if number == signal.SIGINT and is_third_interrupt(self._received):
            raise KeyboardInterrupt


def is_third_interrupt(received: Sequence[int]) -> bool:
    """Whether the last signal is the third SIGINT, to stop without saving; the second prints a hint."""
    count = received.count(signal.SIGINT)
    if count == 2 and process_rank() == 0:
        os.write(2, b"saving, then stopping; press Ctrl-C a third time to stop without saving\n")
    return count > 2


def leave_interrupts_to_parent() -> None:
    """Ignore SIGINT in this process, also during trainings; the parent process sends SIGTERM instead."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _SIGNALS.remove(signal.SIGINT)


def stopped_unsaved(step: int, last: Path | None) -> Interrupted:
    """The error that ends a run after a third SIGINT; ``last`` is the newest checkpoint, if any."""
    return Interrupted(
        f"stopped by Ctrl-C after step {step}, without saving; the same command {_resumes(last)}"
    )


def _resumes(last: Path | None) -> str:
    return f"resumes from {last}" if last is not None else "restarts this training"


def stopped(flags: StopFlags, step: int, place: str) -> StlmKdError:
    """The error that ends a run after a signal; ``place`` is the saved checkpoint."""
    cause, kind = ("SIGTERM", Preempted) if flags[1] else ("Ctrl-C", Interrupted)
    return kind(f"stopped by {cause} after step {step}; saved {place}; the same command resumes from there")
