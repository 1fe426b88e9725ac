"""Parts in turn, each fetched in the background while the one before it is read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from stlm_kd.activity import doing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """A part of a source, such as a file, that may be elsewhere.

    Attributes:
        name: Its name within the source.
        read: Streams it; fetches it first if need be.
        fetch: Fetches it; None if it is here.
        num_bytes: Its size.
    """

    name: str
    read: Callable[[], Iterator[T]]
    fetch: Callable[[], object] | None = None
    num_bytes: int = 0


def in_turn(parts: Sequence[Part[T]], characters: Callable[[T], int]) -> Iterator[T]:
    """What the parts hold, in order.

    The next part is fetched in a thread once as many ``characters`` are read as half of this one has bytes,
    so at most one part is fetched that is not read. A fetch that fails there is repeated when the part is
    read, which raises its error. The thread does not keep a command from ending.
    """
    following: threading.Thread | None = None
    for number, part in enumerate(parts):
        if following is not None:
            with doing(f"fetching {part.name}"):
                following.join()
            following = None
        later = parts[number + 1].fetch if number + 1 < len(parts) else None
        left = part.num_bytes / 2
        for one in part.read():
            left -= characters(one)
            if later is not None and left <= 0:
                following, later = _started(later), None
            yield one


def _started(fetch: Callable[[], object]) -> threading.Thread:
    def run() -> None:
        with suppress(Exception):
            fetch()

    thread = threading.Thread(target=run, name="fetching", daemon=True)
    thread.start()
    return thread
