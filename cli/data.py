"""``stlm-kd data``: what a recipe reads, fetching it ahead, and what a single source is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.console import file_size, print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.invocation import begin_pins
from stlm_kd.cli.options import AsJson, Overrides
from stlm_kd.errors import MissingResourceError

if TYPE_CHECKING:
    from stlm_kd import DataSet

app = typer.Typer(
    no_args_is_help=True, help="List and fetch the data that recipes read.", rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A file or built-in name.")]


@app.command("list", cls=Command)
def list_data(recipe: Name, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """List the data sets that a recipe and its suites read: where they are, and how large."""
    import stlm_kd

    begin_pins()
    _print(stlm_kd.list_data(recipe, overrides or ()), as_json=as_json)


@app.command(cls=Command)
def get(recipe: Name, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Fetch what a recipe and its suites read into the cache; a broken fetch is taken up again."""
    import stlm_kd

    begin_pins()
    _print(stlm_kd.get_data(recipe, overrides or ()), as_json=as_json)


@app.command(cls=Command)
def info(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="ORG/NAME[@REVISION] on the Hub, a file, folder or address."),
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="The configuration, of several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a source's splits, files, rows, size, columns and licence; compressed files are checked."""
    import stlm_kd

    begin_pins()
    found = stlm_kd.data_info(source, name)
    if as_json:
        print_json(asdict(found))
        return
    commit = f" at {found.commit}" if found.commit else ""
    say(f"{found.name}{commit}{'; gated: accept its terms on the Hub first' if found.gated else ''}")
    for words, value in (("licence", found.licence), ("read from the mirror", found.mirror)):
        if value:
            say(f"{words}: {value}")
    if found.configurations:
        say(f"configurations (--name): {', '.join(found.configurations)}")
    if found.columns:
        say(f"columns: {', '.join(found.columns)}")
    rows = [
        (
            split or "all",
            f"{one.files:,}",
            file_size(one.num_bytes),
            "" if one.rows is None else f"{one.rows:,}",
        )
        for split, one in found.splits.items()
    ]
    if rows:
        print_rows(("SPLIT", "FILES", "SIZE", "ROWS"), rows)


def _print(found: Sequence[DataSet], *, as_json: bool) -> None:
    """The data sets; raises MissingResourceError, after the table, if some are missing."""
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        rows = [
            (
                one.name,
                one.state,
                "" if one.num_bytes is None else file_size(one.num_bytes),
                one.licence or "",
                ", ".join(one.splits),
                one.where,
                ", ".join(one.places),
            )
            for one in found
        ]
        print_rows(("DATA", "STATE", "SIZE", "LICENCE", "SPLITS", "WHERE", "READ BY"), rows)
    faults = [f"{', '.join(one.places)}: {one.fault}" for one in found if one.fault]
    if missing := list(dict.fromkeys(faults)):
        raise MissingResourceError("\n  ".join([f"{len(missing)} of the data sets missing", *missing]))
