"""What this process is doing: said on stderr when nothing else is, and told to the other processes.

Long work stands in ``doing``. After half a minute without a line of progress the main process says what it
does. Several processes that train together tell each other the same text (``stlm_kd.watchdog``).
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

WORD_EVERY_S = 30.0
"""The longest time without a word on stderr while something is done."""

Pace = Literal["steps", "free", "waits"]
"""How this process shows that it is alive.

``steps``: by ``advance``, which is called often, and by input and output; ``free``: also by using the
processor; ``waits``: it waits for others, for as long as these take.
"""


@dataclass(slots=True)
class Activity:
    """Something that takes time: a participle and its object, such as "tokenising train.txt"."""

    what: str
    unit: str = ""
    total: int | None = None
    pace: Pace = "free"
    done: int = 0
    first: int = 0
    began: float = field(default_factory=time.monotonic)

    def advance(self, number: int = 1) -> None:
        """Count what was done; costs two additions."""
        self.done += number
        advanced()

    def begin_at(self, number: int) -> None:
        """Say how much was done before."""
        self.done = self.first = number

    def took(self) -> str:
        """How long it has taken, and about how long it will take yet, if that is known."""
        seconds = time.monotonic() - self.began
        if self.total is None or self.done <= self.first:
            return duration(seconds)
        left = max(self.total - self.done, 0) * seconds / (self.done - self.first)
        return f"{duration(seconds)}, about {duration(left)} left"

    def __str__(self) -> str:
        if not self.unit:
            return self.what
        end = "" if self.total is None else f" of {self.total:,}"
        return f"{self.what}, {self.unit} {self.done:,}{end}"


@dataclass(slots=True)
class _State:
    doing: list[Activity] = field(default_factory=list)
    advances: int = 0
    spoken: float = 0.0
    ended: threading.Event = field(default_factory=threading.Event)


_state = _State()


@contextmanager
def doing(what: str, *, unit: str = "", total: int | None = None, pace: Pace = "free") -> Iterator[Activity]:
    """Mark what this process does within the block; ``unit`` and ``total`` are of what ``advance`` counts.

    Blocks may be nested; then the outer and the inner activity are named.
    """
    activity = Activity(what, unit, total, pace)
    _state.doing.append(activity)
    if len(_state.doing) == 1 and os.environ.get("RANK", "0") == "0":
        spoke()
        _state.ended = threading.Event()
        threading.Thread(target=_speak, args=(_state.ended,), name="activity", daemon=True).start()
    try:
        yield activity
    finally:
        _state.doing.remove(activity)
        _state.advances += 1
        if not _state.doing:
            _state.ended.set()


def advanced() -> None:
    """Note a part of what this process does, such as one micro-batch of a step."""
    _state.advances += 1


def spoke() -> None:
    """Note that something was just printed, so that no further word is due."""
    _state.spoken = time.monotonic()


def described() -> str:
    """What this process does, from the outermost activity to the innermost.

    >>> with doing("student seed 1", unit="step", total=120) as training, doing("validating"):
    ...     training.advance(57)
    ...     described()
    'student seed 1, step 57 of 120: validating'
    """
    return ": ".join(str(activity) for activity in (*_state.doing,)) or "between two tasks"


def progress() -> tuple[int, Pace]:
    """A number that changes with every advance, and how this process shows that it is alive."""
    doing = (*_state.doing,)
    return _state.advances, doing[-1].pace if doing else "free"


def work() -> tuple[float, float]:
    """Seconds of processor time, and bytes read and written, so far, of all threads but the calling one.

    Includes children that have ended. Bytes may be counted twice, on their way to a file and to its disk.
    """
    own, children = _used(resource.RUSAGE_SELF), _used(resource.RUSAGE_CHILDREN)
    seconds, moved = own[0] + children[0], own[1] + children[1]
    if sys.platform == "linux":
        caller = _used(resource.RUSAGE_THREAD)
        seconds -= caller[0]
        moved += _transferred("self") - _transferred("thread-self") - caller[1]
    return seconds, moved


def _used(whose: int) -> tuple[float, float]:
    usage = resource.getrusage(whose)
    blocks, pages = usage.ru_inblock + usage.ru_oublock, usage.ru_majflt
    return usage.ru_utime + usage.ru_stime, 512.0 * blocks + resource.getpagesize() * pages


def _transferred(whose: str) -> int:
    """Bytes that were read and written, also of a network file system or a pipe; 0 if that is unknown."""
    try:
        counts = dict(line.split(": ") for line in Path(f"/proc/{whose}/io").read_text("ascii").splitlines())
        return int(counts["rchar"]) + int(counts["wchar"])
    except (OSError, ValueError, KeyError):
        return 0


def waits_for_disk() -> bool:
    """Whether the main thread is in a system call that nothing interrupts, such as the flush of a file."""
    thread = threading.main_thread().native_id
    try:
        state = Path(f"/proc/self/task/{thread}/stat").read_text("utf-8", "replace")
    except OSError:  # no Linux
        return False
    return state.rpartition(") ")[2].startswith("D")


def duration(seconds: float) -> str:
    """A time span in at most two units.

    >>> [duration(seconds) for seconds in (8.2, 88, 720, 4000, 200_000)]
    ['8s', '1m 28s', '12m', '1h 6m', '2d 7h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 600:
        return f"{whole // 60}m" + f" {whole % 60}s" * (whole % 60 > 0)
    if whole < 3600:
        return f"{whole // 60}m"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def _speak(ended: threading.Event) -> None:
    """Say what is done whenever nothing was said for long, until the outermost activity ends."""
    while not ended.wait(max(_state.spoken + WORD_EVERY_S - time.monotonic(), 0.01)):
        doing = (*_state.doing,)
        if doing and time.monotonic() >= _state.spoken + WORD_EVERY_S:
            try:
                print(f"still {described()} ({doing[-1].took()})", file=sys.stderr, flush=True)
            except (OSError, ValueError):  # stderr is closed
                return
            spoke()
