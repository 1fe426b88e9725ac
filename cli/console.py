"""Results on stdout: JSON for machines, tables for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table


def print_json(value: object) -> None:
    """One JSON document."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, plain, so that other programs can read them too."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(padded).rstrip())


def print_table(table: Table) -> None:
    """A Rich table, as wide as it must be where stdout is not a terminal; in a narrow one no cell is cut."""
    from rich.console import Console

    from stlm_kd.artifacts.output import width_of

    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console = Console(width=width_of(table))
    console.print(table)
