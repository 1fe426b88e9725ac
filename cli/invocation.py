"""The invocation of a command: its command line, and its number of processes."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import typer

from stlm_kd.distributed import launched_processes, on_main_process
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from stlm_kd import Recipe


def begin_pins() -> None:
    """Resolve each name on the Hub once in this command, whatever it runs."""
    from stlm_kd.sharing import pins

    pins.use(pins.Pins())


def typed_command() -> str:
    """The command line as typed, with the number of processes if several."""
    processes = launched_processes()
    several = [f"WORLD_SIZE={processes}"] if processes > 1 else []
    return shlex.join([*several, "stlm-kd", *sys.argv[1:]])


def one_commit(recipe: str, processes: int) -> str:
    """The recipe's name; of several processes, all get the same commit of an address that may change."""
    import stlm_kd

    if "://" not in recipe or processes == launched_processes() == 1:
        return recipe
    return on_main_process(lambda: stlm_kd.settled(recipe))


def launched_again(
    processes: int, recipe: Recipe, *, origin: str, typed: str | None = None, jobs: int = 1
) -> bool:
    """Run the command in several processes if requested; return whether it did.

    ``typed`` is the recipe's name on the command line, in place of which they get ``origin``.
    """
    if processes == 1:
        return False
    import stlm_kd
    from stlm_kd.cli.launch import launch

    if jobs > 1:
        raise UsageError(
            f"--jobs {jobs} with --processes {processes}: trainings run either side by side or in several "
            "processes each; leave one of them out"
        )
    stlm_kd.plan(recipe, name=origin, processes=processes)
    words = [_replaced(word, typed, origin) for word in _without_processes(sys.argv[1:])]
    code = launch(words, processes)
    if code:
        raise typer.Exit(code)
    return True


def _replaced(word: str, typed: str | None, name: str) -> str:
    """A word of the command line with another name of the recipe.

    >>> [_replaced(word, "hf://a/b", "hf://a/b@1") for word in ("hf://a/b", "--recipe=hf://a/b", "x=hf://a/b")]
    ['hf://a/b@1', '--recipe=hf://a/b@1', 'x=hf://a/b']
    """
    if typed is None or not word.endswith(typed):
        return word
    option = word[: len(word) - len(typed)]
    return option + name if option in ("", "-r", "-c", "--recipe=", "--config=") else word


def _without_processes(words: list[str]) -> list[str]:
    """The arguments without ``--processes N`` and ``--processes=N``.

    >>> _without_processes(["distill", "--processes", "2", "-r", "x", "--processes=2"])
    ['distill', '-r', 'x']
    """
    kept = []
    rest = iter(words)
    for word in rest:
        if word == "--processes":
            next(rest, None)
        elif not word.startswith("--processes="):
            kept.append(word)
    return kept
