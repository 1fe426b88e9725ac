"""Results on stdout: JSON and tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stlm_kd.errors import printable

if TYPE_CHECKING:
    from rich.table import Table

    from stlm_kd import Comparison, Run


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text, from wherever it comes: with all that does not print escaped but line ends and tabs."""
    typer.echo(printable(text, keep="\n\t"), err=err, nl=nl)


def file_size(num_bytes: int) -> str:
    """A size in its largest unit, such as 1.2 MB."""
    from rich.filesize import decimal  # slow import, which --help does not need

    return decimal(num_bytes)


def print_json(value: object) -> None:
    """Print a JSON document, with all that does not print escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    shown = (sign if sign.isprintable() or sign == "\n" else json.dumps(sign)[1:-1] for sign in text)
    typer.echo("".join(shown))


def deliver(value: object, *, output: Path | None, as_json: bool) -> bool:
    """Write results to the file of ``--output``, print them with ``--json``; return whether printed."""
    if output is not None:
        from stlm_kd.artifacts.output import write_output

        write_output(output, value)
    if as_json:
        print_json(value)
    return as_json


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print aligned plain columns, which other programs can parse."""
    table = [[printable(cell, keep="") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(padded).rstrip())


def print_table(table: Table) -> None:
    """Print a Rich table: at full width outside a terminal, otherwise with cells folded to its width."""
    from rich.console import Console

    from stlm_kd.artifacts.output import width_of

    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console = Console(width=width_of(table))
    console.print(table)


def print_results(run: Run, *, as_json: bool) -> None:
    """Print the table of a run, or its results as JSON with the folder's path."""
    if as_json:
        print_json({"folder": str(run.path), "results": run.results})
    elif run.table is not None:
        say(run.table.rstrip("\n"))


def print_comparison(comparison: Comparison) -> None:
    """Print the means of all rows, and their differences from the baseline."""
    from stlm_kd.reporting.tables.comparison import differences_table, means_table

    print_table(means_table(comparison))
    print_table(differences_table(comparison))
