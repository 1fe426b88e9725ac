"""SIGINT and SIGTERM as a wish that the loop grants after the optimizer step in hand."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import TypeAlias

from stlm_kd.errors import Interrupted, Preempted, StlmKdError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
StopFlags: TypeAlias = tuple[float, float]
"""One number per signal, SIGINT and SIGTERM; not 0 where it came."""


class StopSignals:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second SIGINT interrupts at once.

    The handlers before it are put back at the end; a signal that came too late for the loop to act on is then
    sent to them. Outside the main thread it does nothing, since only the main thread may set handlers.
    """

    def __init__(self) -> None:
        self._received: set[int] = set()
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
        if number == signal.SIGINT and number in self._received:
            raise KeyboardInterrupt
        self._received.add(number)


def stopped(flags: StopFlags, step: int, place: str) -> StlmKdError:
    """The error that ends a run after a signal; ``place`` is the checkpoint that was saved."""
    cause, kind = ("SIGTERM", Preempted) if flags[1] else ("Ctrl-C", Interrupted)
    return kind(f"stopped by {cause} after step {step}; saved {place}; the same command goes on from there")
