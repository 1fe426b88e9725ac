"""Progress on stderr: a live table on a terminal, plain lines in a pipe; lines for the writing of a cache."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stlm_kd.activity import duration, spoke
from stlm_kd.errors import printable
from stlm_kd.tracking.metrics import StepMetrics, Tracker, ValidationMetrics

PER_TOKEN = "nats/tok"  # the unit of a language model's loss

_CACHE_LINE_EVERY_S = 10.0


class PlainProgress(Tracker):
    """One line per logged step, in a fixed order with units."""

    def __init__(self, stream: TextIO, unit: str = PER_TOKEN) -> None:
        self._stream = stream
        self._unit = unit

    def stage(self, name: str) -> None:
        self.note(name)

    def rewind(self, step: int) -> None:
        if step:
            self.note(f"resumed after step {step}")

    def step(self, metrics: StepMetrics) -> None:
        self.note(step_line(metrics, self._unit))

    def validation(self, metrics: ValidationMetrics) -> None:
        self.note(validation_line(metrics, self._unit))

    def note(self, message: str) -> None:
        print(printable(message), file=self._stream, flush=True)
        spoke()


class LiveProgress(Tracker):
    """A table that is redrawn in place; notes and finished stages scroll above it."""

    def __init__(self, console: Console, unit: str = PER_TOKEN) -> None:
        self._console = console
        self._unit = unit
        self._live: Live | None = None
        self._stage = ""
        self._step: StepMetrics | None = None
        self._validation: ValidationMetrics | None = None

    def stage(self, name: str) -> None:
        self.close()
        self._stage, self._step, self._validation = name, None, None

    def rewind(self, step: int) -> None:
        if step:
            self.note(f"{self._stage}: resumed after step {step}")

    def step(self, metrics: StepMetrics) -> None:
        self._step = metrics
        self._draw()

    def validation(self, metrics: ValidationMetrics) -> None:
        self._validation = metrics
        self._draw()

    def note(self, message: str) -> None:
        self._console.print(printable(message), markup=False, highlight=False)
        spoke()

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        self._live.update(self._table())
        spoke()

    def _table(self) -> Table:
        table = Table(title=self._stage, title_justify="left", box=None, pad_edge=False)
        for column in ("", "step", "losses", "speed", "eta"):
            table.add_column(column, justify="left")
        if self._step is not None:
            at = f"{self._step.step}/{self._step.steps}"
            speed = f"{short_number(self._step.tokens_per_second)} tok/s"
            table.add_row(
                "train", at, _losses(self._step, self._unit), speed, duration(self._step.seconds_left)
            )
        if self._validation is not None:
            best = "best so far" if self._validation.is_best else ""
            table.add_row(
                "validation", str(self._validation.step), _terms(self._validation, self._unit), best, ""
            )
        return table


class CacheProgress:
    """Prints a line as soon as the speed is known, and then every ten seconds."""

    def __init__(self, teacher: str, tokens: int, *, say: Callable[[str], None]) -> None:
        self._teacher, self._tokens, self._say = teacher, max(tokens, 1), say
        self._begin = time.monotonic()
        self._last: float | None = None
        self._done = 0

    def done(self, tokens: int) -> None:
        self._done += tokens
        now = time.monotonic()
        if self._last is None or now - self._last >= _CACHE_LINE_EVERY_S:
            self._last = now
            speed = self._done / max(now - self._begin, 1e-6)
            left = max(self._tokens - self._done, 0) / max(speed, 1e-6)
            self._say(
                f"cache of teacher {self._teacher}  {min(self._done / self._tokens, 1):.0%}  "
                f"{short_number(speed)} tok/s  eta {duration(left)}"
            )
            spoke()


def open_progress(stream: TextIO | None = None, *, unit: str = PER_TOKEN) -> Tracker:
    """A live table if the stream (default: stderr) is a terminal, otherwise plain lines."""
    stream = sys.stderr if stream is None else stream
    console = Console(file=stream)
    return (
        LiveProgress(console, unit)
        if console.is_terminal and not console.is_dumb_terminal
        else PlainProgress(stream, unit)
    )


def step_line(metrics: StepMetrics, unit: str = PER_TOKEN) -> str:
    """The line of one training step.

    >>> losses = {"labels": 4.11, "kl": 2.981}
    >>> step_line(StepMetrics(120, 2000, 3.4123, losses, 1e-3, 1.0, 10, 41200.0, 9, 720))
    'step 120/2000  loss 3.412 nats/tok  labels 4.110  kl 2.981  41.2k tok/s  eta 12m'
    """
    speed = f"{short_number(metrics.tokens_per_second)} tok/s"
    eta = f"eta {duration(metrics.seconds_left)}"
    return f"step {metrics.step}/{metrics.steps}  {_losses(metrics, unit)}  {speed}  {eta}"


def validation_line(metrics: ValidationMetrics, unit: str = PER_TOKEN) -> str:
    """The line of one validation."""
    best = "  best so far" if metrics.is_best else ""
    return f"step {metrics.step}/{metrics.steps}  validation  {_terms(metrics, unit)}{best}"


def short_number(value: float) -> str:
    """A number with about three digits and a unit prefix.

    >>> [short_number(value) for value in (12.34, 999, 41_200, 3_400_000)]
    ['12.3', '999', '41.2k', '3.4M']
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.3g}"


def _losses(metrics: StepMetrics, unit: str) -> str:
    terms = (f"{name} {_number(value)}" for name, value in metrics.losses.items())
    return f"loss {_number(metrics.loss)} {unit}  " + "  ".join(terms)


def _terms(metrics: ValidationMetrics, unit: str) -> str:
    terms = [f"{name} {_number(value)}" for name, value in metrics.losses.items()]
    return "  ".join(term + (f" {unit}" if term.startswith("labels ") else "") for term in terms)


def _number(value: float) -> str:
    """Three decimals; scientific notation for smaller nonzero numbers.

    >>> _number(2.9812), _number(0.0), _number(0.00021)
    ('2.981', '0.000', '2.1e-04')
    """
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.1e}"
