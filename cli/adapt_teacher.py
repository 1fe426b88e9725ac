"""``stlm-kd adapt-teacher``: train a new embedding and head for another vocabulary."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_results, say
from stlm_kd.cli.invocation import (
    begin_pins,
    launched_again,
    one_commit,
    print_plans,
    typed_command,
)
from stlm_kd.cli.vocabularies import print_of_recipes
from stlm_kd.distributed import process_rank
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from stlm_kd import Recipe

TeacherAndChanges = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="TEACHER|KEY.PATH=VALUE",
        help="A model folder or Hub id, or with -r a teacher's name in the recipe; and changes to the "
        "recipe, such as teachers[0].adapt.tokens=2M or data.context=64.",
    ),
]
NewTokenizer = Annotated[
    str | None, typer.Option(help="Tokenizer with the new vocabulary: a folder or Hub id.")
]
TrainingText = Annotated[list[Path] | None, typer.Option(help="Training text. May be repeated.")]
HeldOutText = Annotated[
    list[Path] | None, typer.Option(help="Held-out text, for early stopping and the report.")
]
Suites = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|{suite: NAME, …}",
        help="Evaluation before and after adaptation, such as '{suite: lm-eval, tasks: [blimp]}'. May be "
        "repeated.",
    ),
]


def adapt_teacher(
    words: TeacherAndChanges = None,
    recipe: options.OptionalRecipeName = None,
    tokenizer: NewTokenizer = None,
    data: TrainingText = None,
    validation: HeldOutText = None,
    suite: Suites = None,
    output_dir: options.OutputDir = Path("runs"),
    resume: options.ResumeOption = options.Resume.auto,
    update: options.Update = False,
    processes: options.Processes = 1,
    nodes: options.Nodes = 1,
    node_rank: options.NodeRank = None,
    master: options.Master = None,
    hostfile: options.HostFile = None,
    process_timeout: options.ProcessTimeout = None,
    rehearsal: options.Rehearsal = True,
    verify: options.Verify = False,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Adapt a teacher to the student's vocabulary, and report (pseudo-)bits per byte before and after.

    Either -r RECIPE [TEACHER], or TEACHER --tokenizer T --data PATH --validation PATH. The body stays frozen;
    a new embedding and head are initialised from the old ones and trained.
    """
    import stlm_kd

    begin_pins()
    typed, recipe = recipe, None if recipe is None else one_commit(recipe, processes)
    names = [word for word in words or () if "=" not in word or Path(word).is_dir()]
    changes = options.one_value_each([word for word in words or () if word not in names])
    given = {"tokenizer": tokenizer, "train": data or (), "validation": validation or ()}
    loaded, name = _requested(
        recipe, names, changes, suite or (), trust_remote_code=trust_remote_code, **given
    )
    how: dict[str, Any] = {
        "teacher": names[0] if names and recipe is not None else None,
        "output_dir": output_dir,
        "resume": resume is options.Resume.auto,
        "trust_remote_code": trust_remote_code,
    }
    if dry_run:
        print_plans({name: loaded}, processes, adapting=True, as_json=as_json, **how)
        print_of_recipes([loaded], trust_remote_code=trust_remote_code)
        return
    if launched_again(processes, loaded, origin=recipe or "the options", typed=typed):
        return
    run = stlm_kd.adapt_teacher(
        loaded, name=name, update=update, command=typed_command(), rehearsal=rehearsal, **how
    )
    if process_rank() > 0:
        return
    print_results(run, as_json=as_json)
    if not as_json:
        say(f"\nFolder: {run.path}")


def _requested(
    recipe: str | None,
    names: Sequence[str],
    changes: Sequence[str],
    suites: Sequence[str],
    *,
    trust_remote_code: bool,
    **given: Any,
) -> tuple[Recipe, str]:
    """The recipe that is named, or made of the other options, and its runs' name; UsageError for both."""
    import stlm_kd

    if recipe is None:
        changes = [*changes, *([f"eval=[{', '.join(suites)}]"] if suites else [])]
        made = stlm_kd.adaptation_recipe(_only(names), changes, trust_remote_code=trust_remote_code, **given)
        return made, f"adapt-{made.teachers[0].name}"
    if suites or any(given.values()):
        raise UsageError("with -r, change the recipe as in teachers[0].adapt.tokens=2M, not by options")
    if len(names) > 1:
        raise UsageError(f"{shlex.join(names)}: expected the name of one teacher, or none for all")
    plan = stlm_kd.plan(recipe, changes)
    return plan.recipe, plan.name


def _only(names: Sequence[str]) -> str:
    """The one model of a command without a recipe."""
    if len(names) != 1:
        raise UsageError(f"{len(names)} models given; expected one TEACHER (folder or Hub id), or -r RECIPE")
    return names[0]
