"""The invocation of a command: its command line, and its number of processes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import typer

from stlm_kd.cli.console import say
from stlm_kd.cli.options import NODES
from stlm_kd.distributed import launched_processes, on_main_process
from stlm_kd.errors import UsageError
from stlm_kd.placement import Placement, placement

if TYPE_CHECKING:
    from stlm_kd import Recipe
    from stlm_kd.cli.launching.nodes import Nodes

_LAUNCHING = ("--processes", "--nodes", "--node-rank", "--master", "--hostfile")


def begin_pins() -> None:
    """Resolve each name on the Hub once in this command, whatever it runs."""
    from stlm_kd.sharing import pins

    pins.use(pins.Pins())


def typed_command() -> str:
    """The command line as typed, with the number of processes if several."""
    processes = launched_processes()
    several = [f"WORLD_SIZE={processes}"] if processes > 1 else []
    return shlex.join([*several, "stlm-kd", *sys.argv[1:]])


def one_commit(recipe: str, processes: int, *, always: bool = False) -> str:
    """The recipe's name; of several processes, all get the same commit of an address that may change.

    ``always``: also a single one gets a commit.
    """
    import stlm_kd

    if "://" not in recipe or (processes == launched_processes() == 1 and not always):
        return recipe
    return on_main_process(lambda: stlm_kd.settled(recipe))


def launched_again(
    processes: int, recipe: Recipe, *, origin: str, typed: str | None = None, jobs: int = 1
) -> bool:
    """Run the command in several processes if requested; return whether it did.

    ``typed`` is the recipe's name on the command line, in place of which they get ``origin``.
    """
    total = requested_processes(processes)
    if total == 1 and not is_watched():
        return False
    import stlm_kd

    if jobs > 1:
        raise UsageError(
            f"--jobs {jobs} with --processes {processes}: trainings run either side by side or in several "
            "processes each; leave one of them out"
        )
    stlm_kd.plan(recipe, name=origin, processes=total)
    relaunch(processes, lambda word: _replaced(word, typed, origin))
    return True


def requested_processes(processes: int) -> int:
    """The number of processes on all nodes that the options ask for; UsageError if they contradict."""
    return requested_places(processes)[0]


def requested_places(processes: int) -> tuple[int, int]:
    """As ``requested_processes``, and the number of those on this node."""
    nodes = _nodes()
    nodes.check()
    if nodes.hostfile is None:
        return processes * nodes.count, processes
    from stlm_kd.cli.launching.nodes import read_hosts

    hosts = read_hosts(nodes.hostfile)
    if processes not in (1, hosts[0].slots):
        raise UsageError(
            f"--processes {processes}: --hostfile says slots={hosts[0].slots}; leave --processes out"
        )
    return len(hosts) * hosts[0].slots, hosts[0].slots


def print_plans(
    recipes: Mapping[str, Recipe], processes: int, *, as_json: bool, adapting: bool = False, **how: Any
) -> None:
    """Print the plans of a dry run, by name; then raise for what is missing and for teachers without room.

    ``how`` are the arguments of ``Plan.require_room``.
    """
    import stlm_kd

    if as_json:
        raise UsageError("--json: a plan is text; leave out --json, or see recipe show --resolved")
    total, here = max(requested_places(processes), (launched_processes(), placement().local_size))
    plans = [
        stlm_kd.plan(one, name=name, processes=total, on_node=here, adapting=adapting)
        for name, one in recipes.items()
    ]
    say("\n\n".join(plan.text for plan in plans))
    for plan in plans:
        plan.require()
        plan.require_room(**how)


def own_places() -> list[Placement]:
    """The places of this process, or of those that it launches, among those of several; [] if there are none.

    Those of ``--hostfile`` are no one's here: each node launches its own.
    """
    if launched_processes() > 1:
        return [placement()]
    with suppress(UsageError, KeyError):  # KeyError: the command has no such options, or one is wrong
        nodes = _nodes()
        nodes.check()
        if (node := nodes.this()) is not None:
            return node.places(NODES["processes"])
    return []


def is_watched() -> bool:
    """Whether another node started this command, and ends it by its stdin, which a launcher reads."""
    from stlm_kd.cli.launching.processes import FROM_STDIN

    return FROM_STDIN in os.environ


def relaunch(processes: int, replaced: Callable[[str], str] = str) -> None:
    """Run the command, with each word replaced, in the processes that the options ask for.

    Raises:
        typer.Exit: Their exit code is not 0.
    """
    from stlm_kd.cli.launching.nodes import launch_nodes, read_hosts
    from stlm_kd.cli.launching.processes import launch

    nodes, words = _nodes(), [replaced(word) for word in _without_launching(sys.argv[1:])]
    if nodes.hostfile is None:
        code = launch(words, processes, nodes.this())
    else:
        code = launch_nodes(words, read_hosts(nodes.hostfile), nodes.master)
    if code:
        raise typer.Exit(code)


def _nodes() -> Nodes:
    from stlm_kd.cli.launching.nodes import Nodes

    return Nodes(*(NODES[name] for name in ("nodes", "node_rank", "master", "hostfile")))


def _replaced(word: str, typed: str | None, name: str) -> str:
    """A word of the command line with another name of the recipe.

    >>> [_replaced(word, "hf://a/b", "hf://a/b@1") for word in ("hf://a/b", "--recipe=hf://a/b", "x=hf://a/b")]
    ['hf://a/b@1', '--recipe=hf://a/b@1', 'x=hf://a/b']
    """
    if typed is None or not word.endswith(typed):
        return word
    option = word[: len(word) - len(typed)]
    return option + name if option in ("", "-r", "-c", "--recipe=", "--config=") else word


def _without_launching(words: list[str]) -> list[str]:
    """The arguments without the options on processes and nodes.

    >>> _without_launching(["distill", "--processes", "2", "-r", "x", "--processes=2", "--nodes", "2"])
    ['distill', '-r', 'x']
    """
    kept = []
    rest = iter(words)
    for word in rest:
        if word in _LAUNCHING:
            next(rest, None)
        elif word.partition("=")[0] not in _LAUNCHING:
            kept.append(word)
    return kept
