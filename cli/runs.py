"""``stlm-kd runs``: list and show runs and their stages, and delete what no run uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlm_kd.cli.console import file_size, print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.options import AsJson, OutputDir
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from stlm_kd import StageSummary

app = typer.Typer(no_args_is_help=True, help="List, show and clean up runs.", rich_markup_mode=None)


@app.command("list", cls=Command)
def list_runs(
    output_dir: OutputDir = Path("runs"),
    stages: Annotated[
        bool, typer.Option("--stages", help="List the stages that the runs share, the largest first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the runs in a folder, latest first."""
    import stlm_kd

    if stages:
        _print_stages(stlm_kd.list_stages(output_dir), as_json=as_json, none=f"no stages in {output_dir}")
        return
    runs = stlm_kd.list_runs(output_dir)
    if as_json:
        print_json([{**asdict(run), "path": str(run.path)} for run in runs])
    elif not runs:
        say(f"no runs in {output_dir}", err=True)
    else:
        rows = [
            (str(run.path), run.status, run.started, run.finished or "", file_size(run.bytes)) for run in runs
        ]
        print_rows(("RUN", "STATUS", "STARTED", "FINISHED", "SIZE"), rows)


@app.command(cls=Command)
def show(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or its name in --output-dir.")],
    output_dir: OutputDir = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Show a run's command, versions, results, models, and the stages that it uses."""
    import stlm_kd

    found = stlm_kd.open_run(run if os.path.isdir(run) else output_dir / run)  # noqa: PTH112  # long names
    record, table = found.record, found.table
    models = [str(path) for path in found.models]
    stages = [
        stage
        for stage in stlm_kd.list_stages(found.path.absolute().parent)
        if found.path.absolute().name in stage.runs
    ]
    if as_json:
        print_json(
            {
                "path": str(found.path),
                "run": asdict(record),
                "models": models,
                "stages": [_plain(stage) for stage in stages],
            }
        )
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
    if stages:
        typer.echo()
        _print_stages(stages)


@app.command(cls=Command)
def clean(
    output_dir: OutputDir = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete the stages that no run in a folder uses: those of deleted runs, and damaged ones put aside.

    What a process builds at the moment is kept, and what is unfinished and changed within 7 days.
    The runs themselves are deleted as folders are.
    """
    import stlm_kd

    if not output_dir.is_dir():
        raise UsageError(
            f"--output-dir {output_dir}: no such folder; expected the one that contains the runs"
        )
    found, none = stlm_kd.clean_stages(output_dir, dry_run=True), f"nothing to delete in {output_dir}"
    if dry_run or not found:
        _print_stages(found, as_json=as_json, none=none)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"--yes: not given, and no terminal to ask whether to delete {len(found)} stages; give it, "
                "or see --dry-run"
            )
        if not as_json:
            _print_stages(found)
        if not typer.confirm(f"Delete {len(found)} stages?", err=True):
            return
    deleted = stlm_kd.clean_stages(output_dir)
    _print_stages(deleted, as_json=as_json, none=none)
    say(f"deleted: {file_size(sum(stage.freed_bytes for stage in deleted))} freed", err=True)


def _print_stages(stages: Sequence[StageSummary], *, as_json: bool = False, none: str = "") -> None:
    if as_json:
        print_json([_plain(stage) for stage in stages])
    elif not stages:
        say(none, err=True)
    else:
        rows = [
            (
                "; ".join(stage.what) + _state(stage),
                file_size(stage.bytes),
                ", ".join(stage.runs) or _not_used(stage),
                str(stage.path),
            )
            for stage in stages
        ]
        print_rows(("STAGE", "SIZE", "USED BY", "FOLDER"), rows)


def _not_used(stage: StageSummary) -> str:
    is_open = stage.unknown and stage.state != "put aside"
    return f"not known: the list of {', '.join(stage.unknown)} is damaged" if is_open else "no run"


def _state(stage: StageSummary) -> str:
    if stage.state == "finished":
        return ""
    age = "" if stage.age_days is None else f", last changed {max(0, int(stage.age_days))} days ago"
    return f" ({stage.state}{age})"


def _plain(stage: StageSummary) -> dict[str, Any]:
    return {**asdict(stage), "path": str(stage.path)}
