"""Options and arguments that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.artifacts.output import refuse_no_file

_RECIPE = typer.Option(
    "--recipe",
    "-r",
    "--config",
    "-c",
    metavar="RECIPE",
    help="A file, or a built-in name (stlm-kd recipe list).",
)


def one_value_each(changes: list[str] | None) -> list[str]:
    """The changes, unless two are of one place, of which only the last would count.

    Raises:
        UsageError: There are two, or one is not of the form ``key.path=value``.
    """
    if changes and len(changes) > 1:
        from stlm_kd.recipe.overrides import refuse_repeated

        refuse_repeated(changes)
    return changes or []


def file_to_write(option: typer.CallbackParam, path: Path | None) -> Path | None:
    """The value of an option that names a file to write, refused before any work where it cannot be one.

    Raises:
        UsageError: It is a folder, or a device.
    """
    if path is not None:
        refuse_no_file(path, option.opts[0])
    return path


RecipeName = Annotated[str, _RECIPE]
OptionalRecipeName = Annotated[str | None, _RECIPE]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY.PATH=VALUE", help="Change the recipe, as in train.steps=100.", callback=one_value_each
    ),
]
OutputDir = Annotated[Path, typer.Option("--output-dir", help="Where run folders lie.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Let models run code of their own. Read it first.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Results as JSON.")]


Rehearsal = Annotated[
    bool,
    typer.Option(
        "--rehearsal/--no-rehearsal",
        help="Save, load and score the untrained models once before anything is trained.",
    ),
]


class Resume(str, Enum):
    """What to do with an unfinished run of the same recipe."""

    auto = "auto"
    never = "never"


ResumeOption = Annotated[
    Resume,
    typer.Option(
        "--resume",
        help="Go on with unfinished trainings, or begin these anew; finished ones are found again.",
    ),
]


Processes = Annotated[
    int,
    typer.Option(min=1, help="Processes that train together on this node, one for each GPU if it has any."),
]

Teacher = Annotated[str, typer.Argument(metavar="TEACHER", help="A run, model folder or Hub id.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Examples of each task at most, for a trial.")]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="ROW",
        help="What the others are compared with: a row's name or variant. By default the first run's "
        "control, or its student where it has no teachers.",
    ),
]
SmallestDifferences = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[METRIC=]NUMBER",
        help="The smallest difference that matters, as accuracy=.02, or of all metrics, as .02; may be "
        "repeated. Default: .01 of accuracy, F1 and agreement, .02 of correlations and kappa, .01 bits "
        "per byte, .01 nats.",
    ),
]
