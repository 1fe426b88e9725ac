"""Where the processes of a command meet: the store that process 0 keeps, and what all must have in common."""

from __future__ import annotations

import json
import platform
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from importlib import metadata
from typing import TYPE_CHECKING

from stlm_kd.errors import MissingResourceError, UnreachableError, one_line
from stlm_kd.placement import placement

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # not in torch's __all__

_SAME_VERSIONS = ("stlm-kd", "torch", "transformers", "deepspeed")
_NO_NAMES = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_FAIL", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}
"""The errors of a name that does not resolve, now or later."""


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


def shared_store(rank: int, size: int, limit: timedelta) -> Store:
    """The keys and values that process 0 keeps for all; UnreachableError if it cannot, or is not there."""
    from torch import distributed
    from torch.distributed import TCPStore, rendezvous  # type: ignore[attr-defined]  # likewise

    host, port = placement().host, placement().port
    try:
        if distributed.is_torchelastic_launched():  # torchrun keeps the store itself
            store: Store = next(rendezvous("env://", rank, size, timeout=limit))[0]
            return store
        if rank == 0:
            _resolve(host, port)
        else:
            _await_listener(host, port, limit.total_seconds())
        own = {"is_master": rank == 0, "wait_for_workers": False, "multi_tenant": True}
        return TCPStore(host, port, timeout=limit, **own)
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
