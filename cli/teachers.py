"""``stlm-kd teacher``: cached teacher outputs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_json, print_rows, say
from stlm_kd.cli.group import Command
from stlm_kd.cli.invocation import begin_pins, launched_again, one_commit, typed_command
from stlm_kd.distributed import process_rank
from stlm_kd.errors import StlmKdError, UsageError

if TYPE_CHECKING:
    from stlm_kd import CacheSummary

app = typer.Typer(no_args_is_help=True, help="Cached teacher outputs.", rich_markup_mode=None)
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="A cache's folder.")]


@app.command(cls=Command)
def cache(
    recipe: options.RecipeName,
    overrides: options.Overrides = None,
    output_dir: options.OutputDir = Path("runs"),
    resume: options.ResumeOption = options.Resume.auto,
    update: options.Update = False,
    processes: options.Processes = 1,
    nodes: options.Nodes = 1,
    node_rank: options.NodeRank = None,
    master: options.Master = None,
    hostfile: options.HostFile = None,
    process_timeout: options.ProcessTimeout = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Cache each teacher's outputs on a recipe's training data.

    Trains and adapts the teachers first if the recipe requires it. An interrupted command can be resumed.
    """
    import stlm_kd

    begin_pins()
    typed, recipe = recipe, one_commit(recipe, processes)
    loaded = stlm_kd.load_recipe(recipe, overrides or ())
    if loaded.adapts_only or not loaded.teachers:
        raise UsageError(f"{recipe}: distils no student from teachers, so there is nothing to cache")
    if launched_again(processes, loaded, origin=recipe, typed=typed):
        return
    made = stlm_kd.build_cache(
        loaded,
        name=Path(recipe).stem,
        output_dir=output_dir,
        resume=resume is options.Resume.auto,
        update=update,
        trust_remote_code=trust_remote_code,
        command=typed_command(),
    )
    if process_rank() > 0:
        return
    found = [stlm_kd.inspect_cache(folder) for folders in made.values() for folder in folders]
    if as_json:
        print_json([asdict(entry) for entry in found])
        return
    for entry in found:
        _print(entry)
    say("Use them with teachers[…].cache: auto, or with the folder's name.")


@app.command(cls=Command)
def inspect(folder: CacheFolder, as_json: options.AsJson = False) -> None:
    """Show a cache's size, the probability mass of its top-k, entropy, and origin."""
    import stlm_kd
    from stlm_kd.reporting.cache_contents import made_of_rows

    found = stlm_kd.inspect_cache(folder)
    if as_json:
        print_json(asdict(found))
        return
    _print(found)
    print_rows(("made of", "value"), list(made_of_rows(found.made_of)))


@app.command(cls=Command)
def verify(
    folder: CacheFolder,
    rows: Annotated[int, typer.Option(min=1, help="Rows to recompute.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Random seed of the rows.")] = 0,
    output_dir: options.OutputDir = Path("runs"),
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Verify a cache's checksums, recompute some rows and compare; exit code 1 if they differ.

    For a merged cache only the checksums are verified: there is no single teacher to compare with.
    """
    import stlm_kd

    found = stlm_kd.verify_cache(
        folder, rows=rows, seed=seed, output_dir=output_dir, trust_remote_code=trust_remote_code
    )
    if found is None:
        note = "the checksums of all its files are right; merged, so there is no teacher to compare it with"
        if as_json:
            unknown = dict.fromkeys(("difference", "ids", "not_finite", "agrees"))
            print_json({"rows": 0, "tokens": 0, **unknown, "note": note})
        else:
            say(f"{folder}: {note}; verify the caches that it was made of")
        return
    words = (
        f"{folder}: {found.rows} rows, {found.tokens} tokens recomputed: probabilities differ by at most "
        f"{found.difference:.1e}, {found.ids:.1%} of the ids are the same"
    )
    if found.not_finite:
        words += f", {found.not_finite} values are NaN or infinite"
    if as_json:
        print_json({**asdict(found), "agrees": found.agrees})
    else:
        say(words)
    if not found.agrees:
        raise StlmKdError(f"{words}; that is more than rounding: rebuild the cache")


@app.command(cls=Command)
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="CACHE…", help="Caches of the same data.")],
    output: Annotated[Path, typer.Option(help="Folder of the new cache.")],
    how: Annotated[
        str, typer.Option(metavar="NAME", help="mean, weighted, confidence, entropy or label-likelihood.")
    ] = "mean",
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME=0.7,NAME=0.3", help="For weighted: by teacher, or by cache index from 0."),
    ] = None,
    sharpness: Annotated[
        float | None, typer.Option(help="For confidence, entropy and label-likelihood; above 0.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Merge the caches of several teachers into one, which a recipe reads as a single teacher."""
    import stlm_kd

    numbers = None if weights is None else f"{{{weights.replace('=', ': ')}}}"
    given = options.read_settings(None, weights=numbers, sharpness=sharpness)
    merged = stlm_kd.inspect_cache(stlm_kd.merge_caches(folders, how=how, options=given, output=output))
    if as_json:
        print_json(asdict(merged))
    else:
        _print(merged)
        say(f"  use it in a recipe with teachers: [{{name: merged, cache: {output}}}]")


def _print(found: CacheSummary) -> None:
    variants = f" under {found.variants} masks each" if found.variants > 1 else ""
    say(
        f"{found.folder}: teacher {found.teacher}, {found.rows:,} rows{variants}, {found.tokens:,} tokens\n"
        f"  {found.bytes / 1e6:,.1f} MB in {found.shards} shards, {found.bytes_per_token:.1f} bytes a token: "
        f"{found.kept} at temperature {found.temperature:g}"
    )
    if found.is_merged:
        say(
            f"  the head covers {found.head_covers:.1%}, the part of the mixture that is known exactly; "
            f"the teachers' mean entropy {found.entropy:.3f} nats"
        )
    else:
        say(f"  the head covers {found.head_covers:.1%}; mean entropy {found.entropy:.3f} nats")
