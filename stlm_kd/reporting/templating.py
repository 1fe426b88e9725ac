"""Pages and model cards by templates, and terminal tables as plain rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from rich.table import Table
from rich.text import Text

from stlm_kd.errors import inline_markdown, printable


@dataclass(frozen=True, slots=True)
class Cells:
    """A table as text: headings, rows, each column's class ("" for the default), and the caption's lines."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    classes: Sequence[str]
    notes: Sequence[str]


def render(template: str, **content: object) -> str:
    """Fill a template: all values are escaped in HTML, and characters that do not print."""
    return _environment().get_template(template).render(content)


def cells(made: Table) -> Cells:
    """A table as in the terminal."""
    columns = made.columns
    return Cells(
        [_plain(column.header) for column in columns],
        [[_plain(cell) for cell in row] for row in zip(*(column.cells for column in columns), strict=True)],
        ["number" if column.justify == "right" else "" for column in columns],
        [line for line in _plain(made.caption or "").splitlines() if line],
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("stlm_kd.reporting"),
        autoescape=select_autoescape(["html.j2"], disabled_extensions=["md.j2"], default=True),
        undefined=StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["cells"] = cells
    made.filters["inline"] = inline_markdown
    return made


def _escaped(value: object) -> object:
    """Text that prints; markup as it is."""
    return value if hasattr(value, "__html__") else printable(value, keep="\n\t")


def _plain(cell: object) -> str:
    """The displayed text of a cell: strings contain Rich markup, ``Text`` does not."""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
