"""``stlm-kd recipe``: list, find, show, copy, share, sign, lock, compare, verify and validate recipes."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.invocation import begin_pins
from stlm_kd.cli.models import DryRun, Private, Tag
from stlm_kd.cli.options import AsJson, Frozen, Locked, OutputDir, Overrides, file_to_write, only_one_of
from stlm_kd.errors import MissingResourceError, RecipeError

app = typer.Typer(
    no_args_is_help=True,
    help="List, find, show, copy, share, compare and validate recipes.",
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="A file, folder, address or built-in name.")]


@app.command("list", cls=Command)
def list_recipes(as_json: AsJson = False) -> None:
    """List the built-in recipes and lists of objectives, with their purposes."""
    import stlm_kd

    found = stlm_kd.list_recipes()
    if as_json:
        print_json([{**asdict(entry), "path": str(entry.path)} for entry in found])
        return
    print_rows(("NAME", "PURPOSE"), [(one.name, one.purpose) for one in found if one.kind == "recipe"])
    say("")
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

    text = stlm_kd.show_recipe(recipe, overrides or (), resolved=resolved)
    say(text, nl=False)


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
    say(f"{target}\nTry it: stlm-kd recipe validate {target}")


@app.command(cls=Command)
def pull(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="hf://, https:// or git+https://.")],
    destination: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="A new folder; by default named by the address.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier recipe.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a recipe's folder from an address. Nothing of it is run."""
    import stlm_kd

    found = stlm_kd.pull_recipe(address, destination, overwrite=force)
    if as_json:
        print_json({**asdict(found), "folder": str(found.folder), "recipe": str(found.recipe)})
        return
    say(f"{found.origin}\n")
    print_rows(("FILE", "BYTES"), [(name, f"{size:,}") for name, size in found.sizes.items()])
    say(f"\n{found.folder}\nRead it: stlm-kd distill -r {found.recipe} --dry-run")


@app.command(cls=Command)
def push(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe, or a finished run.")],
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="hf://USER/NAME, git+https://…[@BRANCH], or a folder.")
    ],
    private: Private = False,
    tag: Tag = None,
    with_model: Annotated[
        str | None, typer.Option(metavar="hf://USER/NAME", help="Push the run's first student there too.")
    ] = None,
    with_data: Annotated[
        bool, typer.Option("--with-data", help="Push files of the folder data, and texts in results, too.")
    ] = False,
    allow_dirty: Annotated[
        bool, typer.Option("--allow-dirty", help="Push although the code was not committed.")
    ] = False,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign the folder, as recipe sign.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Push a recipe, or a run with its results, as one folder with its lock and a card."""
    import stlm_kd

    found = stlm_kd.push_recipe(
        recipe,
        address,
        private=private,
        tag=tag,
        with_model=with_model,
        with_data=with_data,
        allow_dirty=allow_dirty,
        sign=sign,
        dry_run=dry_run,
    )
    if as_json:
        print_json(asdict(found))
        return
    print_rows(("FILE", "BYTES"), [(name, f"{size:,}") for name, size in found.files.items()])
    if found.model is not None:
        say(f"\nmodel: {found.model}")
    say(f"\n{found.address}" + (": nothing was pushed (--dry-run)" if dry_run else ""))


@app.command(cls=Command)
def search(
    words: Annotated[list[str] | None, typer.Argument(metavar="[WORDS]", help="Words of its name.")] = None,
    task: Annotated[str | None, typer.Option(help="clm, mlm, classification or regression.")] = None,
    teacher: Annotated[str | None, typer.Option(metavar="ID", help="A teacher's id on the Hub.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find recipes: built-in ones, then those on the Hub."""
    import stlm_kd

    found = stlm_kd.search_recipes(" ".join(words or ()), task=task, teacher=teacher)
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        say("no recipe found", err=True)
    else:
        rows = [(one.name, one.place, one.task, ", ".join(one.teachers), one.purpose) for one in found]
        print_rows(("NAME", "PLACE", "TASK", "TEACHERS", "PURPOSE"), rows)


@app.command(cls=Command)
def lock(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN",
            help="A file, folder, address or built-in name; or a finished run's folder or name.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="By default recipe.lock: beside the recipe, for a run in this folder."
        ),
    ] = None,
    output_dir: OutputDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Write what the names in a recipe stand for now, or copy what a finished run used.

    Tells what differs from the lock that was there. Downloads nothing.
    """
    import stlm_kd

    begin_pins()
    target, moved, command = stlm_kd.lock_recipe(recipe, output, output_dir=output_dir)
    if as_json:
        print_json({"lock": str(target), "moved": [asdict(one) for one in moved]})
        return
    say("\n".join([*map(str, moved), str(target), f"Use it: {command}"]))


@app.command(cls=Command)
def sign(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Has recipe.yaml.")],
    key: Annotated[Path, typer.Option("--key", help="An elliptic-curve private key, as PEM.")],
    as_json: AsJson = False,
) -> None:
    """Sign a recipe's folder as it is, into recipe.sig. Needs the extra signing."""
    import stlm_kd

    target = stlm_kd.sign_recipe(folder, key)
    if as_json:
        print_json({"signature": str(target)})
        return
    say(f"{target}\nOthers check it: stlm-kd recipe verify {folder} --signed-by PUBLIC_KEY")


@app.command(cls=Command)
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="A recipe or an address.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two recipes by meaning, and their locks. Exit code 1: they differ."""
    import stlm_kd

    found = stlm_kd.compare_recipes(before, after)
    if as_json:
        print_json({"before": before, "after": after, "changes": found.as_json()})
    else:
        say(found.as_text())
    if found.changes:
        raise typer.Exit(1)


@app.command(cls=Command)
def verify(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="An address, a folder with results, or a run.")
    ],
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the weights again: the run's, or published ones.")
    ] = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Train again, with the lock's commits.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds that --rerun trains.")] = 1,
    model: Annotated[
        Path | None, typer.Option("--model", help="The folder of a model that --rescore scores.")
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", help="Keeps the run of --rerun; by default temporary.")
    ] = None,
    signed_by: Annotated[
        Path | None, typer.Option(metavar="PUBLIC_KEY", help="Require a signature by its owner.")
    ] = None,
    wheel: Annotated[
        Path | None, typer.Option(help="Compare this wheel with the program that made the lock.")
    ] = None,
    environment: Annotated[
        Path | None, typer.Option(help="Install the wheel into this new virtual environment.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the result as JSON to a file.", callback=file_to_write),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check what a recipe's folder claims. Exit code 1: refuted.

    From the files alone: lock, scores from per-example values, verdicts, card. Runs nothing without --rescore
    or --rerun.
    """
    import stlm_kd

    begin_pins()
    found = stlm_kd.verify_recipe(
        recipe,
        rescore=rescore,
        rerun=rerun,
        seeds=seeds,
        model=model,
        signed_by=signed_by,
        wheel=wheel,
        environment=environment,
        output=output,
        output_dir=output_dir,
    )
    if as_json:
        print_json(found.as_json())
    else:
        say(found.as_text())
    if found.refuted:
        raise typer.Exit(1)


@app.command(cls=Command)
def validate(
    recipe: Name,
    overrides: Overrides = None,
    locked: Locked = False,
    frozen: Frozen = False,
    as_json: AsJson = False,
) -> None:
    """Validate a recipe: list all faults (exit code 3) and missing requirements (exit code 5).

    Reads no text and loads no model. For a valid recipe that cannot run on this machine, prints its hash and
    what is missing. With --locked, whatever differs from its lock is a fault.
    """
    import stlm_kd

    begin_pins()
    only_one_of(locked=locked, frozen=frozen)
    with ExitStack() as within:
        try:
            source = stlm_kd.settled(recipe) if locked or frozen else recipe
            plan = stlm_kd.plan(source, overrides or (), name=recipe)
            if locked or frozen:
                within.enter_context(stlm_kd.locked(source, plan.recipe, frozen=frozen))
        except RecipeError as error:
            if not as_json:
                raise
            faults = [{"place": f.place, "line": f.line, "message": f.message} for f in error.faults]
            print_json({"recipe": recipe, "ok": False, "faults": faults})
            raise typer.Exit(error.exit_code) from error
        if not as_json:
            say(f"{recipe}: OK, hash {plan.hash[:12]}")
            plan.require()
            return
        missing = [{"place": fault.place, "message": fault.message} for fault in plan.missing]
    print_json({"recipe": recipe, "ok": True, "hash": plan.hash, "missing": missing})
    if missing:
        raise typer.Exit(MissingResourceError.exit_code)
