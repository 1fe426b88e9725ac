"""The time that SIGTERM leaves: a preempted node has half a minute."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait

from stlm_kd.distributed import end_now, process_rank, tell_stop
from stlm_kd.errors import Preempted, UsageError, printable

STOP_WITHIN = "STLM_KD_STOP_WITHIN"
"""The environment variable with the seconds from SIGTERM to the end."""
DEFAULT_STOP_WITHIN_S = 30.0
_USED = 0.95
"""The share of that time after which a process ends itself, rather than be killed without a word."""
_UNFINISHED = 1 / 3
"""The share within which a begun optimizer step must end, to leave the rest to a checkpoint."""


def stop_within_s() -> float:
    """The seconds from SIGTERM to the end; UsageError if the environment variable is no such number."""
    text = os.environ.get(STOP_WITHIN, "") or str(DEFAULT_STOP_WITHIN_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise UsageError(
            f"{STOP_WITHIN}: {text!r} found, expected seconds above 0, such as 30; correct or unset it"
        )
    return seconds


class Deadline:
    """Context in which SIGTERM ends this process in time, with code 75, if it does not end by itself.

    A thread sees the signal and does it: the main thread may be in a collective operation, or writing a file.
    The signal must have a handler in Python. ``last_words`` is the message, with what the same command
    resumes from. Does nothing outside the main thread, as ``signals.handled``.
    """

    def __init__(self, last_words: Callable[[], str]) -> None:
        self.limit_s = stop_within_s()
        self.last_words = last_words
        self._told_at: float | None = None
        self._writer = self._outer = -1
        self._is_over, self._lock = False, threading.Lock()

    def __enter__(self) -> Deadline:
        if threading.current_thread() is threading.main_thread():
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            self._outer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(reader,), name="deadline", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer >= 0:
            signal.set_wakeup_fd(self._outer)
            with self._lock:
                self._is_over = True
            os.close(self._writer)

    def would_be_late(self, seconds: float) -> bool:
        """Whether SIGTERM has come, and an optimizer step would take too long that needs so many more."""
        at = self._told_at
        return at is not None and time.monotonic() + seconds > at + self.limit_s * _UNFINISHED

    def _watch(self, reader: int) -> None:
        """Read the numbers of the signals that come, until the context ends; tell the others of SIGTERM."""
        left_s: float | None = None
        while wait([reader], left_s):
            if not (numbers := os.read(reader, 64)):
                os.close(reader)
                return
            if self._told_at is None and signal.SIGTERM in numbers:
                self._told_at = time.monotonic()
                with self._lock:
                    if not self._is_over:
                        tell_stop()
            if self._told_at is not None:
                left_s = max(0.0, self._told_at + self.limit_s * _USED - time.monotonic())
        message = f"{self.last_words()} ({STOP_WITHIN}: {self.limit_s:g} s)"
        if process_rank() == 0:
            print(printable(message), file=sys.stderr, flush=True)
        end_now("interrupted", message, Preempted.exit_code)


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # its signals are not the parent's
