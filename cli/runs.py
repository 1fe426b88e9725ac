"""``stlm-kd runs``: list and show runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.options import AsJson, OutputDir

app = typer.Typer(no_args_is_help=True, help="List and show runs.", rich_markup_mode=None)


@app.command("list", cls=Command)
def list_runs(output_dir: OutputDir = Path("runs"), as_json: AsJson = False) -> None:
    """List the runs in a folder, latest first."""
    import stlm_kd

    runs = stlm_kd.list_runs(output_dir)
    if as_json:
        print_json([{**asdict(run), "path": str(run.path)} for run in runs])
    elif not runs:
        say(f"no runs in {output_dir}", err=True)
    else:
        rows = [(str(run.path), run.status, run.started, run.finished or "") for run in runs]
        print_rows(("RUN", "STATUS", "STARTED", "FINISHED"), rows)


@app.command(cls=Command)
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name in --output-dir.")],
    output_dir: OutputDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show a run's command, versions, results and models."""
    import stlm_kd

    found = stlm_kd.open_run(run if run.is_dir() else output_dir / run)
    record, table = found.record, found.table
    models = [str(path) for path in found.models]
    if as_json:
        print_json({"path": str(found.path), "run": asdict(record), "models": models})
        return
    ended = f", ended {record.finished}" if record.finished else ""
    say(f"{found.path}: {record.status}, started {record.started}{ended}")
    if record.message:
        say(f"message: {record.message}")
    say(f"command: {record.command}\nrecipe hash: {record.recipe_hash}")
    say(f"python {record.python} on {record.platform}")
    say("versions: " + ", ".join(f"{name} {version}" for name, version in record.versions.items()))
    if table:
        say(f"\n{table.rstrip()}")
    for model in models:
        say(f"model: {model}")
