"""``stlm-kd recipe``: list, show, copy and validate recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows
from stlm_kd.cli.group import Command
from stlm_kd.cli.options import AsJson, Overrides
from stlm_kd.errors import MissingResourceError, RecipeError, UsageError

app = typer.Typer(no_args_is_help=True, help="List, show, copy and validate recipes.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A file or a built-in name.")]


@app.command("list", cls=Command)
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes and lists of objectives, with their purposes."""
    from stlm_kd.recipe.locate import built_in, built_in_objectives

    found = {"recipe": built_in(), "objectives": built_in_objectives()}
    if as_json:
        print_json(
            [
                {"name": entry.name, "kind": kind, "purpose": entry.purpose, "path": str(entry.path)}
                for kind, entries in found.items()
                for entry in entries
            ]
        )
    else:
        print_rows(("NAME", "PURPOSE"), [(recipe.name, recipe.purpose) for recipe in found["recipe"]])
        typer.echo("")
        rows = [(f"objectives: {entry.name}", entry.purpose) for entry in found["objectives"]]
        print_rows(("IN A RECIPE", "PURPOSE"), rows)


@app.command(cls=Command)
def show(
    recipe: Name,
    overrides: Overrides = None,
    resolved: Annotated[bool, typer.Option("--resolved", help="Fill in defaults and apply changes.")] = False,
) -> None:
    """Show a recipe or a list of objectives as written, or a resolved recipe."""
    from stlm_kd.recipe.locate import shown, text_of

    if resolved:
        from stlm_kd.recipe import load, resolved_yaml

        typer.echo(resolved_yaml(load(recipe, overrides or ())), nl=False)
    elif overrides:
        raise UsageError(f"{overrides[0]}: changes show only with --resolved")
    else:
        typer.echo(text_of(shown(recipe)), nl=False)


@app.command(cls=Command)
def copy(
    recipe: Name,
    destination: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="A file or folder; by default ./NAME.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Copy a recipe for editing."""
    from stlm_kd.recipe.locate import locate, text_of

    source = locate(recipe)
    target = destination if destination is not None else Path()
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise UsageError(f"{target}: exists; choose another name, or overwrite it with --force")
    text = text_of(source)
    try:
        with target.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise MissingResourceError(f"{target}: cannot be written ({error.strerror})") from error
    typer.echo(f"{target}\nTry it: stlm-kd recipe validate {target}")


@app.command(cls=Command)
def validate(recipe: Name, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a recipe: list all faults (exit code 3) and missing requirements (exit code 5).

    Reads no text and loads no model. For a valid recipe that cannot run on this machine, prints its hash and
    what is missing.
    """
    from stlm_kd.recipe import load, recipe_hash

    try:
        loaded = load(recipe, overrides or ())
    except RecipeError as error:
        if not as_json:
            raise
        faults = [{"place": f.place, "line": f.line, "message": f.message} for f in error.faults]
        print_json({"recipe": recipe, "ok": False, "faults": faults})
        raise typer.Exit(error.exit_code) from error
    from stlm_kd.pipeline.checks.requirements import missing_here, refuse_what_cannot_run

    digest = recipe_hash(loaded)
    if not as_json:
        typer.echo(f"{recipe}: OK, hash {digest[:12]}")
        refuse_what_cannot_run(loaded, origin=recipe)
        return
    missing = [{"place": fault.place, "message": fault.message} for fault in missing_here(loaded)]
    print_json({"recipe": recipe, "ok": True, "hash": digest, "missing": missing})
    if missing:
        raise typer.Exit(MissingResourceError.exit_code)
