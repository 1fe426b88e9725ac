"""``stlm-kd distill``: run a recipe."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_comparison, print_json, print_results, say
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
    from stlm_kd import Recipe, Run


def distill(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    output_dir: options.OutputDir = Path("runs"),
    resume: options.ResumeOption = options.Resume.auto,
    update: options.Update = False,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,…", help="Short for seeds=[1,2,…].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of parallel trainings and evaluations.")] = 1,
    processes: options.Processes = 1,
    nodes: options.Nodes = 1,
    node_rank: options.NodeRank = None,
    master: options.Master = None,
    hostfile: options.HostFile = None,
    process_timeout: options.ProcessTimeout = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY.PATH=[V,V,…]",
            help="One run per value, with a final table of all students; or the name of a list under the "
            "recipe's sweep. May be repeated: one run per combination.",
        ),
    ] = None,
    rehearsal: options.Rehearsal = True,
    verify: options.Verify = False,
    trust_remote_code: options.TrustRemoteCode = False,
    dry_run: options.DryRun = False,
    locked: options.Locked = False,
    frozen: options.Frozen = False,
    as_json: options.AsJson = False,
) -> None:
    """Run a recipe: adapt the teachers, distil the student, evaluate it.

    Finished stages are reused.
    """
    import stlm_kd

    begin_pins()
    options.only_one_of(locked=locked, frozen=frozen, update=update)
    if (locked or frozen) and sweep:
        raise UsageError("--sweep: a lock is of one recipe; leave --locked and --frozen out")
    typed, recipe = recipe, one_commit(recipe, processes, always=locked or frozen)
    recipes = _with_students(recipe, overrides or (), seeds, sweep or ())
    loaded = next(iter(recipes.values()))
    if not dry_run and launched_again(processes, loaded, origin=recipe, typed=typed, jobs=jobs):
        return
    how: dict[str, Any] = {
        "output_dir": output_dir,
        "resume": resume is options.Resume.auto,
        "trust_remote_code": trust_remote_code,
    }
    with stlm_kd.locked(recipe, loaded, frozen=frozen) if locked or frozen else nullcontext():
        if dry_run:
            print_plans(recipes, processes, as_json=as_json, **how)
            print_of_recipes(recipes.values(), trust_remote_code=trust_remote_code)
            return
        how |= {"update": update, "command": typed_command(), "rehearsal": rehearsal, "jobs": jobs}
        runs = [stlm_kd.distill(one, name=name, **how) for name, one in recipes.items()]
    if process_rank() > 0:
        return
    if sweep:
        _print_side_by_side(runs, as_json=as_json)
        return
    _print_run(runs[0], loaded.task, as_json=as_json)


def _with_students(
    recipe: str, overrides: Sequence[str], seeds: str | None, sweep: Sequence[str]
) -> Mapping[str, Recipe]:
    """The recipes of a sweep, or the one; UsageError if they only adapt teachers."""
    import stlm_kd

    changes = [*overrides, *([f"seeds=[{seeds}]"] if seeds is not None else [])]
    recipes = stlm_kd.sweep_recipes(recipe, changes, sweep)
    if next(iter(recipes.values())).adapts_only:
        raise UsageError(f"{recipe}: trains no student; run stlm-kd adapt-teacher -r {shlex.quote(recipe)}")
    return recipes


def _print_side_by_side(runs: Sequence[Run], *, as_json: bool) -> None:
    import stlm_kd
    from stlm_kd.reporting.tables.comparison import as_json as plain

    comparison = stlm_kd.compare_students(runs)
    if as_json:
        print_json({"folders": [str(run.path) for run in runs], "comparison": plain(comparison)})
        return
    print_comparison(comparison)
    say("\n".join(["", *(f"Run: {run.path}" for run in runs)]))


def _print_run(run: Run, task: str, *, as_json: bool) -> None:
    print_results(run, as_json=as_json)
    if as_json:
        return
    say(f"\nTable and results: {run.path}/table.txt, results.json\nLoss curves: {run.path}/curves.png")
    place = shlex.quote(str(run.path))
    say(f"Model: {run.model()}\nAll in one page: stlm-kd report {place} --html report.html")
    trial = f"eval {place} --suite {'masked-loss' if task == 'mlm' else task}"
    if task == "clm":
        trial = f"generate {place} --prompt 'The'"
    say(f"Try it: stlm-kd {trial}")
