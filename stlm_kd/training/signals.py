"""SIGINT and SIGTERM as a wish that the loop grants after the optimizer step in hand."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeAlias

from stlm_kd.distributed import process_rank
from stlm_kd.errors import Interrupted, Preempted, StlmKdError

_SIGNALS = [signal.SIGINT, signal.SIGTERM]
StopFlags: TypeAlias = tuple[float, float]
"""One number per signal, SIGINT and SIGTERM; not 0 where it came."""


class StopSignals:
    """While it is entered, SIGINT and SIGTERM are only noted; a third SIGINT interrupts at once.

    The handlers before it are put back at the end; a signal that came too late for the loop to act on is then
    sent to them. Outside the main thread it does nothing, since only the main thread may set handlers.
    """

    def __init__(self) -> None:
        self._received: list[int] = []
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if kind is None and self._received:
            signal.raise_signal(min(self._received))

    @property
    def flags(self) -> StopFlags:
        """What came to this process so far."""
        return float(signal.SIGINT in self._received), float(signal.SIGTERM in self._received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)
        if number == signal.SIGINT and is_third_interrupt(self._received):
            raise KeyboardInterrupt


def is_third_interrupt(received: Sequence[int]) -> bool:
    """Whether SIGINT came so often that nothing is to be saved; the second one is told what a third does.

    Args:
        received: The signals that came, of which the last is a SIGINT.
    """
    count = received.count(signal.SIGINT)
    if count == 2 and process_rank() == 0:
        os.write(2, b"saving, then stopping; press Ctrl-C a third time to stop without saving\n")
    return count > 2


def leave_interrupts_to_parent() -> None:
    """From now on SIGINT means nothing to this process, within trainings too; its parent sends it SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _SIGNALS.remove(signal.SIGINT)


def stopped_unsaved(step: int, last: Path | None) -> Interrupted:
    """The error that ends a run after a third SIGINT; ``last`` is the newest checkpoint, if there is one."""
    rest = f"goes on from {last}" if last is not None else "begins this training anew"
    return Interrupted(f"stopped by Ctrl-C after step {step}, without saving; the same command {rest}")


def stopped(flags: StopFlags, step: int, place: str) -> StlmKdError:
    """The error that ends a run after a signal; ``place`` is the checkpoint that was saved."""
    cause, kind = ("SIGTERM", Preempted) if flags[1] else ("Ctrl-C", Interrupted)
    return kind(f"stopped by {cause} after step {step}; saved {place}; the same command goes on from there")
