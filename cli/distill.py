"""``stlm-kd distill``: run a recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.invocation import launched_again, typed_command
from stlm_kd.cli.options import (
    AsJson,
    OutputDir,
    Overrides,
    Processes,
    RecipeName,
    Rehearsal,
    Resume,
    ResumeOption,
    TrustRemoteCode,
)
from stlm_kd.distributed import process_rank
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from stlm_kd.recipe import Recipe


def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    output_dir: OutputDir = Path("runs"),
    resume: ResumeOption = Resume.auto,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,…", help="Short for seeds=[1,2,…].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel trainings and evaluations.")] = 1,
    processes: Processes = 1,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.PATH=[V,V,…]",
            help="One run per value, with a final table of all students. May be repeated: one run per "
            "combination.",
        ),
    ] = None,
    rehearsal: Rehearsal = True,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show the plan and missing requirements."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe: adapt the teachers, distil the student, evaluate it.

    Finished stages are reused.
    """
    changes = [*(overrides or ()), *([f"seeds=[{seeds}]"] if seeds is not None else [])]
    runs = recipes_of(recipe, changes, sweep or ())
    loaded = next(iter(runs.values()))
    if loaded.adapts_only:
        raise UsageError(f"{recipe}: trains no student; run stlm-kd adapt-teacher -r {shlex.quote(recipe)}")
    if dry_run:
        if as_json:
            raise UsageError("--json: a plan is text; leave out --json, or see recipe show --resolved")
        from stlm_kd.pipeline.checks.requirements import refuse_what_cannot_run
        from stlm_kd.recipe.describe import describe

        typer.echo("\n\n".join(describe(one) for one in runs.values()))
        for name, one in runs.items():
            refuse_what_cannot_run(one, origin=name)
        return
    if launched_again(processes, loaded, origin=recipe, jobs=jobs):
        return
    import stlm_kd

    folders = [
        stlm_kd.distill(
            one,
            name=name,
            output_dir=output_dir,
            resume=resume is Resume.auto,
            trust_remote_code=trust_remote_code,
            command=typed_command(),
            rehearsal=rehearsal,
            jobs=jobs,
        ).path
        for name, one in runs.items()
    ]
    if process_rank() > 0:
        return
    if sweep:
        print_side_by_side(folders, as_json=as_json)
        return
    print_results(folders[0], as_json=as_json)
    if not as_json:
        print_what_next(folders[0], loaded)


def recipes_of(recipe: str, changes: Sequence[str], sweeps: Sequence[str]) -> dict[str, Recipe]:
    """The recipes to run by run name: one, or one per combination of swept values."""
    from stlm_kd.recipe import load
    from stlm_kd.recipe.overrides import refuse_repeated

    refuse_repeated([*changes, *sweeps])
    if not sweeps:
        return {Path(recipe).stem: load(recipe, changes)}
    from stlm_kd.pipeline.sweep import swept

    return swept(recipe, changes, sweeps)


def print_side_by_side(folders: Sequence[Path], *, as_json: bool) -> None:
    """Print a comparison of the students of several runs, and the run folders."""
    from stlm_kd.pipeline.sweep import side_by_side
    from stlm_kd.reporting.tables.comparison import as_json as plain
    from stlm_kd.reporting.tables.comparison import differences_table, means_table

    comparison = side_by_side(folders)
    if as_json:
        print_json({"folders": [str(folder) for folder in folders], "comparison": plain(comparison)})
        return
    print_table(means_table(comparison))
    print_table(differences_table(comparison))
    typer.echo("\n".join(["", *(f"Run: {folder}" for folder in folders)]))


def print_results(folder: Path, *, as_json: bool) -> None:
    """Print the table of a run, or its results as JSON with the folder's path."""
    table, results = folder / "table.txt", folder / "results.json"
    if as_json:
        found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
        print_json({"folder": str(folder), "results": found})
    elif table.is_file():
        typer.echo(table.read_text(encoding="utf-8").rstrip("\n"))


def print_what_next(folder: Path, recipe: Recipe) -> None:
    """Print the locations of the outputs and next commands."""
    from stlm_kd.artifacts.run_dir import model_of

    typer.echo(f"\nTable and results: {folder}/table.txt, results.json\nLoss curves: {folder}/curves.png")
    place = shlex.quote(str(folder))
    typer.echo(f"Model: {model_of(str(folder))}\nAll in one page: stlm-kd report {place} --html report.html")
    suite = "masked-loss" if recipe.task == "mlm" else recipe.task
    trial = f"eval {place} --suite {suite}"
    if recipe.task == "clm":
        trial = f"generate {place} --prompt 'The'"
    typer.echo(f"Try it: stlm-kd {trial}")
