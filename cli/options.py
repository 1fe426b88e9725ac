"""Options and arguments shared by several commands."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from stlm_kd.artifacts.hashing import hashed_anew
from stlm_kd.artifacts.output import refuse_no_file
from stlm_kd.distributed import DEFAULT_TIMEOUT_MIN, TIMEOUT, timeout_s
from stlm_kd.errors import UsageError

_RECIPE = typer.Option(
    "--recipe",
    "-r",
    "--config",
    "-c",
    metavar="RECIPE",
    help="A file, folder, address or built-in name (stlm-kd recipe list).",
)


def file_to_write(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """Raise UsageError if the path of an output file is a folder or a device, before any work."""
    if path is not None:
        refuse_no_file(path, option.opts[0])
    return path


def hash_anew(ctx: typer.Context, wanted: bool) -> bool:
    """Forget the hashes of earlier commands until the command ends."""
    if wanted:
        ctx.with_resource(hashed_anew())
    return wanted


def one_value_each(changes: list[str] | None) -> list[str]:
    """Check that no key is changed twice, since only the last change would count."""
    if changes and len(changes) > 1:
        from stlm_kd.recipe.overrides import refuse_repeated

        refuse_repeated(changes)
    return changes or []


def read_settings(words: list[str] | None, **short: object) -> dict[str, Any]:
    """The values of ``--set`` by option, and of options of their own, as ``--limit 5`` for ``limit=5``."""
    from stlm_kd.recipe.overrides import settings

    given = [f"{name}={value}" for name, value in short.items() if value is not None]
    return {**settings([*(words or ()), *given])}


def only_one_of(**given: bool) -> None:
    """Refuse several of the options that say which commits are used.

    Raises:
        UsageError: More than one is given.
    """
    if sum(given.values()) > 1:
        named = ", ".join(f"--{name}" for name, is_given in given.items() if is_given)
        raise UsageError(f"{named}: each says which commits are used; give one of them")


def split(words: str | None) -> list[str]:
    """A comma-separated list."""
    return [] if words is None else [word.strip() for word in words.split(",")]


RecipeName = Annotated[str, _RECIPE]
OptionalRecipeName = Annotated[str | None, _RECIPE]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Change the recipe, such as train.steps=100.", callback=one_value_each
    ),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Folder that contains the runs.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code shipped with a model. Read it first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON.")]


Update = Annotated[
    bool,
    typer.Option("--update", help="Follow names on the Hub that have moved since the run's last start."),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify",
        help="Hash all files that are used again anew, not only those that changed since the last time.",
        callback=hash_anew,
    ),
]
Locked = Annotated[
    bool,
    typer.Option("--locked", help="Use what the recipe.lock beside the recipe says; refuse other content."),
]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Like --locked, without asking the Hub what has moved.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan, missing requirements, and teachers without room.")
]
Rehearsal = Annotated[
    bool,
    typer.Option(
        "--rehearsal/--no-rehearsal", help="Save, load and score the untrained models once before training."
    ),
]


class Resume(str, Enum):
    """What to do with an unfinished run of the same recipe."""

    auto = "auto"
    never = "never"


ResumeOption = Annotated[
    Resume,
    typer.Option("--resume", help="Resume unfinished trainings, or restart them; finished ones are reused."),
]
NODES: dict[str, Any] = {}
"""The options on processes and nodes of the command that runs, which its launcher reads."""


def _keep(option: typer.CallbackParam, value: Any) -> Any:
    NODES[option.name or ""] = value
    return value


Processes = Annotated[
    int,
    typer.Option(
        min=1, callback=_keep, help="Number of training processes on this node; one per GPU, if any."
    ),
]

Nodes = Annotated[
    int,
    typer.Option(
        min=1,
        callback=_keep,
        help="Number of nodes, on each of which this command is given, with --processes.",
    ),
]
NodeRank = Annotated[int | None, typer.Option(min=0, callback=_keep, help="This node's number, from 0.")]
Master = Annotated[
    str | None,
    typer.Option(metavar="ADDR:PORT", callback=_keep, help="Where the nodes meet: a free port of node 0."),
]
HostFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_keep,
        help="Nodes, a line 'HOST slots=N' for each; starts the command on all of them by ssh.",
    ),
]


def _limit_silence(minutes: float | None) -> None:
    """Hand the option on to what reads the variable."""
    timeout_s(minutes)
    if minutes is not None:
        os.environ[TIMEOUT] = str(minutes)


ProcessTimeout = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        callback=_limit_silence,
        help=f"End if another process is silent for so long. Default: {TIMEOUT}, or {DEFAULT_TIMEOUT_MIN:g}.",
    ),
]
Output = Annotated[
    Path | None, typer.Option(callback=file_to_write, help="Write all results to this JSON file.")
]
Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help="A run, model folder or Hub id.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="OPTION=VALUE", help="An option of the suite, as in recipes. May be repeated."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Maximum examples per task, for a trial.")]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="ROW",
        help="Row to compare the others with: a name or variant. Default: the first run's control, or its "
        "student if it has no teachers.",
    ),
]
SmallestDifferences = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[METRIC=]NUMBER",
        help="Smallest difference that matters, such as accuracy=.02, or .02 for all metrics. May be "
        "repeated. Default: .01 for accuracy, F1 and agreement, .02 for correlations and kappa, .01 bits "
        "per byte, .01 nats.",
    ),
]
