"""What libraries write to stderr while they read a file, kept apart from the one message about it."""

from __future__ import annotations

import faulthandler
import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class _Passing(io.TextIOBase):
    """``sys.stderr`` while its file is held; whoever keeps it writes to ``sys.stderr`` later."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._target.isatty()

    def fileno(self) -> int:
        return self._target.fileno()

    def write(self, text: str) -> int:
        return self._target.write(text)

    def flush(self) -> None:
        self._target.flush()

    def end(self) -> None:
        """The file is held no longer."""
        self._stream = None

    @property
    def _target(self) -> TextIO:
        return sys.stderr if self._stream is None else self._stream


@contextmanager
def stderr_held() -> Iterator[list[BaseException]]:
    """Hold warnings, and what is written to the file of stderr, such as panics in Rust, within the block.

    It is shown at the end, or is a note of the error in the list, for tracebacks. What Python code prints is
    shown at once. All threads share that file, so only the main one holds it, and only on Linux.
    """
    explained: list[BaseException] = []
    is_main = threading.current_thread() is threading.main_thread()
    if sys.platform != "linux" or sys.__stderr__ is None or not is_main:
        yield explained
        return
    real = os.dup(2)
    stream, show = sys.stderr, warnings.showwarning
    warned: list[tuple[Any, ...]] = []
    with (
        os.fdopen(real, "w", buffering=1, encoding="utf-8", errors="backslashreplace") as passing,
        tempfile.TemporaryFile() as held,
    ):
        os.dup2(held.fileno(), 2)
        if is_faulty := faulthandler.is_enabled():  # what ends the process is not held
            faulthandler.enable(real)
        stand_in = _Passing(passing)
        sys.stderr = stand_in if stream is sys.__stderr__ else stream
        warnings.showwarning = lambda *told: warned.append(told)
        try:
            yield explained
        finally:
            sys.stderr, warnings.showwarning = stream, show
            stand_in.end()
            os.dup2(real, 2)
            if is_faulty:
                faulthandler.enable(2)
            held.seek(0)
            text = held.read()
            if not explained:
                os.write(2, text)
                for told in warned:
                    show(*told)
            elif hasattr(explained[0], "add_note"):  # from Python 3.11 on
                said = [text.decode("utf-8", "replace"), *(str(message) for message, *_ in warned)]
                explained[0].add_note("\n".join(filter(None, said)))
