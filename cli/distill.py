"""``stlm-kd distill``: everything that a recipe says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.printing import print_json
from stlm_kd.cli.words import (
    AsJson,
    OutputDir,
    Overrides,
    Processes,
    RecipeName,
    Resume,
    ResumeOption,
    TrustRemoteCode,
    is_first_process,
    launched_again,
    typed_command,
)


def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    output_dir: OutputDir = Path("runs"),
    resume: ResumeOption = Resume.auto,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,…", help="Short for seeds=[1,2,…].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings and evaluations side by side.")] = 1,
    processes: Processes = 1,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt the teachers, distil the student, evaluate it: all that the recipe says.

    Finished stages are found again and reused.
    """
    from stlm_kd.errors import UsageError
    from stlm_kd.recipe import load

    changes = [*(overrides or ()), *([f"seeds=[{seeds}]"] if seeds is not None else [])]
    loaded = load(recipe, changes)
    if loaded.adapts_only:
        raise UsageError(f"{recipe}: trains no student; run stlm-kd adapt-teacher -r {shlex.quote(recipe)}")
    if dry_run:
        if as_json:
            raise UsageError("--json: a plan is text; leave out --json, or see recipe show --resolved")
        from stlm_kd.run.plan import describe

        typer.echo(describe(loaded))
        return
    if launched_again(processes, loaded, origin=recipe, jobs=jobs):
        return
    from stlm_kd.run.distill import distill as run

    folder = run(
        loaded,
        name=Path(recipe).stem,
        output_dir=output_dir,
        resume=resume.value,
        trust_remote_code=trust_remote_code,
        command=typed_command(),
        jobs=jobs,
    )
    if not is_first_process():
        return
    print_results(folder, as_json=as_json)
    if not as_json:
        from stlm_kd.run.models import model_of

        typer.echo(f"\nTable and results: {folder}/table.txt, results.json\nLoss curves: {folder}/curves.png")
        place = shlex.quote(str(folder))
        typer.echo(
            f"Model: {model_of(str(folder))}\nAll in one page: stlm-kd report {place} --html report.html"
        )
        suite = "masked-loss" if loaded.task == "mlm" else loaded.task
        trial = f"eval {place} --suite {suite}"
        if loaded.task == "clm":
            trial = f"generate {place} --prompt 'The'"
        typer.echo(f"Try it: stlm-kd {trial}")


def print_results(folder: Path, *, as_json: bool) -> None:
    """The table of a folder, or its results as JSON with the folder's path."""
    table, results = folder / "table.txt", folder / "results.json"
    if as_json:
        found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else None
        print_json({"folder": str(folder), "results": found})
    elif table.is_file():
        typer.echo(table.read_text(encoding="utf-8").rstrip("\n"))
