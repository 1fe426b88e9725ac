"""``stlm-kd recipe``: list, show, copy and validate recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows
from stlm_kd.cli.group import Command
from stlm_kd.cli.options import AsJson, Overrides
from stlm_kd.errors import MissingResourceError, RecipeError

app = typer.Typer(no_args_is_help=True, help="List, show, copy and validate recipes.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A file or a built-in name.")]


@app.command("list", cls=Command)
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes and lists of objectives, with their purposes."""
    import stlm_kd

    found = stlm_kd.list_recipes()
    if as_json:
        print_json([{**asdict(entry), "path": str(entry.path)} for entry in found])
        return
    print_rows(("NAME", "PURPOSE"), [(one.name, one.purpose) for one in found if one.kind == "recipe"])
    typer.echo("")
    rows = [(f"objectives: {one.name}", one.purpose) for one in found if one.kind == "objectives"]
    print_rows(("IN A RECIPE", "PURPOSE"), rows)


@app.command(cls=Command)
def show(
    recipe: Name,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Fill in defaults and apply changes.")] = False,
) -> None:
    """Show a recipe or a list of objectives as written, or a resolved recipe."""
    import stlm_kd

    typer.echo(stlm_kd.show_recipe(recipe, overrides or (), resolved=resolved), nl=False)


@app.command(cls=Command)
def copy(
    recipe: Name,
    destination: Annotated[
        Path, typer.Argument(metavar="[DEST]", help="A file or folder; by default ./NAME.yaml.")
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe for editing."""
    import stlm_kd

    target = stlm_kd.copy_recipe(recipe, destination, overwrite=force)
    typer.echo(f"{target}\nTry it: stlm-kd recipe validate {target}")


@app.command(cls=Command)
def validate(recipe: Name, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a recipe: list all faults (exit code 3) and missing requirements (exit code 5).

    Reads no text and loads no model. For a valid recipe that cannot run on this machine, prints its hash and
    what is missing.
    """
    import stlm_kd

    try:
        plan = stlm_kd.plan(recipe, overrides or (), name=recipe)
    except RecipeError as error:
        if not as_json:
            raise
        faults = [{"place": f.place, "line": f.line, "message": f.message} for f in error.faults]
        print_json({"recipe": recipe, "ok": False, "faults": faults})
        raise typer.Exit(error.exit_code) from error
    if not as_json:
        typer.echo(f"{recipe}: OK, hash {plan.hash[:12]}")
        plan.require()
        return
    missing = [{"place": fault.place, "message": fault.message} for fault in plan.missing]
    print_json({"recipe": recipe, "ok": True, "hash": plan.hash, "missing": missing})
    if missing:
        raise typer.Exit(MissingResourceError.exit_code)
