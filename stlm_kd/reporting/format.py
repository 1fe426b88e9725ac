"""Counts, means and intervals as tables and pages write them, and tables with notes below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from stlm_kd.errors import printable

if TYPE_CHECKING:  # these import torch
    from stlm_kd.eval.agreement.predictions import Kappa
    from stlm_kd.eval.agreement.report import Mean
    from stlm_kd.eval.attribution.compare import MeanOver

UNKNOWN = "—"


def cell(text: str, style: str = "") -> Text:
    """Text of a table, without markup; what does not print is escaped but line ends."""
    return Text(printable(text), style)


def noted_table(notes: Iterable[str], *columns: Column, title: str = "") -> Table:
    """An empty table with notes below it, one on each line."""
    caption = cell("\n".join(notes), "table.caption")
    return Table(*columns, title=cell(title, "table.title"), caption=caption, caption_justify="left")


def words(*headings: str) -> list[Column]:
    """Columns of text."""
    return [Column(cell(heading)) for heading in headings]


def numbers(*headings: str, max_width: int | None = None) -> list[Column]:
    """Columns of numbers, aligned on the right."""
    return [Column(cell(heading), justify="right", max_width=max_width) for heading in headings]


def count(number: int | None) -> str:
    """A whole number.

    >>> count(12345), count(None)
    ('12,345', '—')
    """
    return UNKNOWN if number is None else f"{number:,}"


def flops(number: int | None) -> str:
    """FLOPs, of which three digits matter."""
    return UNKNOWN if number is None else f"{number:.2e}"


def with_stderr(found: Mean | MeanOver) -> str:
    """A mean with its standard error."""
    return f"{found.value:.4f} ± {found.stderr:.4f}"


def interval(low: float, high: float, form: str = ".4f") -> str:
    """An interval.

    >>> interval(-0.5, 0.25, "+.2f")
    '[-0.50, +0.25]'
    """
    return f"[{low:{form}}, {high:{form}}]"


def with_interval(found: Kappa | MeanOver | None, form: str = ".4f") -> str:
    """A value with its 95 % interval, if it is known."""
    if found is None or found.value is None:
        return UNKNOWN
    assert found.low is not None and found.high is not None
    return f"{found.value:{form}} {interval(found.low, found.high, form)}"
