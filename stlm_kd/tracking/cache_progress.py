"""Progress of writing a teacher cache: share done, speed, remaining time."""

from __future__ import annotations

import time
from collections.abc import Callable

from stlm_kd.tracking.console import duration, short_number

EVERY_S = 10.0


class CacheProgress:
    """Prints a line as soon as the speed is known, and then every ten seconds.

    Args:
        teacher: The teacher's name.
        tokens: Approximate number of tokens to write.
        say: Receives each line.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        teacher: str,
        tokens: int,
        *,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._teacher, self._tokens = teacher, max(tokens, 1)
        self._say, self._clock = say, clock
        self._begin = self._clock()
        self._last: float | None = None
        self._done = 0

    def done(self, tokens: int) -> None:
        """Add completed tokens."""
        self._done += tokens
        now = self._clock()
        if self._last is None or now - self._last >= EVERY_S:
            self._last = now
            self._say(self._line(now))

    def _line(self, now: float) -> str:
        speed = self._done / max(now - self._begin, 1e-6)
        left = max(self._tokens - self._done, 0) / max(speed, 1e-6)
        return (
            f"cache of teacher {self._teacher}  {min(self._done / self._tokens, 1):.0%}  "
            f"{short_number(speed)} tok/s  eta {duration(left)}"
        )
