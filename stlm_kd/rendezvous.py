"""Where the processes of a command meet: the store that process 0 keeps, and what all must have in common.

A process that fails before it has come tells the others there, which would wait for it.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING, Any

from stlm_kd import activity
from stlm_kd.errors import (
    AbsentProcessError,
    MissingResourceError,
    RemoteProcessError,
    StlmKdError,
    UnreachableError,
    one_line,
    printable,
)
from stlm_kd.placement import Placement, placement

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # not in torch's __all__

_SAME_VERSIONS = ("stlm-kd", "torch", "transformers", "deepspeed")
_NO_NAMES = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_FAIL", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}
"""The errors of a name that does not resolve, now or later."""

PATIENCE_S = 10.0
"""Seconds for which a process that fails waits for the others of its node, so that one says why."""
_LONG_PATIENCE_S = 60.0  # of process 0 for those of other nodes, which may be still importing
_HEARD = "heard of a failure"

_has_begun = False


def own_versions() -> dict[str, str]:
    """The host of a process, and its versions of Python and the libraries that all must share."""
    found = {"host": socket.gethostname(), "Python": platform.python_version()}
    for name in _SAME_VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def refuse_other(told: Sequence[str]) -> None:
    """Refuse processes that differ from the first one; ``told`` has the JSON of what each is, by rank.

    >>> refuse_other(['{"host": "a", "torch": "2.13.0"}', '{"host": "b"}'])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    stlm_kd.errors.MissingResourceError: process 1 on b has no torch, process 0 on a has torch 2.13.0; ...
    """
    first, *others = (json.loads(text) for text in told)
    for rank, facts in enumerate(others, start=1):
        names = sorted({*first, *facts} - {"host"}, key=str.lower)
        if differing := [name for name in names if facts.get(name) != first.get(name)]:
            here, there = (
                ", ".join(f"{name} {known[name]}" if name in known else f"no {name}" for name in differing)
                for known in (facts, first)
            )
            raise MissingResourceError(
                f"process {rank} on {one_line(facts['host'])} has {one_line(here)}, process 0 on "
                f"{one_line(first['host'])} has {one_line(there)}; give all processes of a command the same "
                "environment, recipe and options (WORLD_SIZE=1 for a task of srun that works alone)"
            )


def meet(start_s: float) -> Store:
    """Meet the other processes of this command, within so many seconds; returns the store that all share.

    Raises:
        MissingResourceError: Some, which it names, do not come in time, or differ from process 0.
        AbsentProcessError: One on another node failed before it came; in the first process of this node.
        RemoteProcessError: Likewise, where another process says so.
    """
    global _has_begun
    _has_begun = True
    place, limit = placement(), timedelta(seconds=start_s)
    names = [_key(rank) for rank in range(place.size)]
    with activity.doing("waiting for the other processes to start", pace="waits"):
        store = shared_store(place.rank, place.size, limit)
        store.set(names[place.rank], json.dumps(own_versions()))
        try:
            store.wait(names, limit)
        except RuntimeError as error:
            missing: list[str] = []
            with suppress(RuntimeError):  # process 0, which keeps the store, has ended
                missing = [name for name in names if not store.check([name])]
            raise MissingResourceError(
                f"WORLD_SIZE: {', '.join(missing) or 'process 0'} of {place.size} did not start within "
                f"{activity.duration(start_s)}; see what it printed, or launch fewer processes"
            ) from error
        try:
            told = [store.get(name).decode() for name in names]
        except RuntimeError as error:  # process 0, which keeps the store, has refused another
            raise RemoteProcessError(MissingResourceError.exit_code) from error
        for failure in filter(_has_failed, map(json.loads, told)):
            _keep_until_heard(store, [place])
            raise _absent(failure, place)
        refuse_other(told)
    return store


def is_awaited(places: Sequence[Placement]) -> bool:
    """Whether other processes wait for those at these places, and no launcher ends them instead.

    They do until ``meet``; torchrun, which keeps the store itself, ends the others of all nodes.
    """
    known = bool(places and places[0].host and places[0].port)
    return known and not _has_begun and "TORCHELASTIC_RUN_ID" not in os.environ


def tell_failure(places: Sequence[Placement], reason: str, exit_code: int, patience_s: float) -> bool | None:
    """Tell the other processes that those at these places, which are awaited, failed before they came.

    Process 0 listens until all have heard, for some seconds; others try so long to reach it.

    Returns:
        Whether the first process of the node failed for the same reason; None if process 0 was not reached.
    """
    first = places[0]
    own = {"host": socket.gethostname(), "rank": first.rank, "reason": reason, "exit_code": exit_code}
    text = json.dumps(own)
    doing = f"telling the other processes of a failure: {one_line(reason)}"
    try:
        with activity.doing(doing, pace="waits"):
            store = _open(first, timedelta(seconds=patience_s))
            before = _first_of_node(store, first)
            for place in places:
                store.set(_key(place.rank), text)
            for rank in range(first.size):  # so that no one waits for processes that have not come yet
                store.compare_set(_key(rank), "", text)
            _keep_until_heard(store, places)
    except (RuntimeError, ValueError, OSError):
        return None
    return before.get("reason") == reason


def _first_of_node(store: Store, place: Placement) -> dict[str, Any]:
    """What the first process of this node is, or why it failed; empty if it does not come in some seconds."""
    if place.leads_node:
        return {}
    first = _key(place.rank - place.rank % place.local_size)
    with suppress(RuntimeError):
        store.wait([first], timedelta(seconds=PATIENCE_S))
        return dict(json.loads(store.get(first)))
    return {}


def _key(rank: int) -> str:
    """The key of what a process is, or of why it does not come."""
    return f"process {rank}"


def _has_failed(facts: dict[str, Any]) -> bool:
    return "reason" in facts


def _absent(failure: dict[str, Any], place: Placement) -> StlmKdError:
    """The error of the process at ``place`` after another's failure, which that one prints on its node."""
    nodes = [rank // place.local_size for rank in (failure["rank"], place.rank)]
    if place.local_rank > 0 or (nodes[0] == nodes[1] and failure["host"] == socket.gethostname()):
        return RemoteProcessError(failure["exit_code"])
    return AbsentProcessError(
        f"process {failure['rank']} of {place.size} on {one_line(failure['host'])} failed before it met the "
        f"others: {printable(failure['reason'], most=2000)}",
        failure["exit_code"],
    )


def _keep_until_heard(store: Store, places: Sequence[Placement]) -> None:
    """Count these processes as such that know of the failure; process 0 waits some seconds for the others."""
    patience_s = _LONG_PATIENCE_S if places[0].nodes > 1 else PATIENCE_S
    deadline = time.monotonic() + patience_s
    with suppress(RuntimeError):  # process 0, which keeps the store, has ended
        heard = store.add(_HEARD, len(places))
        while places[0].rank == 0 and heard < places[0].size and time.monotonic() < deadline:
            time.sleep(0.05)
            heard = store.add(_HEARD, 0)


def shared_store(rank: int, size: int, limit: timedelta) -> Store:
    """The keys and values that process 0 keeps for all; UnreachableError if it cannot, or is not there."""
    from torch import distributed
    from torch.distributed import rendezvous  # type: ignore[attr-defined]  # left out of torch's __all__

    host, port = placement().host, placement().port
    try:
        if distributed.is_torchelastic_launched():  # torchrun keeps the store itself
            store: Store = next(rendezvous("env://", rank, size, timeout=limit))[0]
            return store
        return _open(placement(), limit)
    except (RuntimeError, ValueError, OSError) as error:
        if isinstance(error, UnicodeError) or _is_no_name(error):
            raise UnreachableError(
                f"MASTER_ADDR, or --master: {one_line(host)!r} does not resolve on {socket.gethostname()} "
                f"({one_line(error)}); give an address of process 0 that all nodes know"
            ) from error
        cannot = "listen" if rank == 0 else "reach process 0"
        raise UnreachableError(
            f"MASTER_ADDR, MASTER_PORT: {host}, port {port}: process {rank} of {size} cannot {cannot} there "
            f"({str(error).splitlines()[0]}); free the port or choose another, and see whether process 0 runs"
        ) from error


def _open(place: Placement, limit: timedelta) -> Store:
    """Listen as process 0, or connect to it; RuntimeError, ValueError or OSError if that fails."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # likewise

    if place.rank == 0:
        _resolve(place.host, place.port)
    else:
        _await_listener(place.host, place.port, limit.total_seconds())
    own = {"is_master": place.rank == 0, "wait_for_workers": False, "multi_tenant": True}
    return TCPStore(place.host, place.port, timeout=limit, **own)


def _await_listener(host: str, port: int, limit_s: float) -> None:
    """Wait until something listens there; PyTorch would log its attempts.

    OSError if nothing does in time, or at once if there is no such name.
    """
    deadline = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection((host, port), timeout=limit_s).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or _is_no_name(error):
                raise
            time.sleep(0.1)


def _resolve(host: str, port: int) -> None:
    """Raise OSError or UnicodeError for a name that does not resolve, which PyTorch would try again."""
    try:
        socket.getaddrinfo(host, port)
    except socket.gaierror as error:
        if _is_no_name(error):
            raise


def _is_no_name(error: Exception) -> bool:
    """Whether a name does not resolve, other than while no name server answers."""
    return isinstance(error, socket.gaierror) and error.errno in _NO_NAMES
