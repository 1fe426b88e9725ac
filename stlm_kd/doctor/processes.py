"""Whether the processes of this command reach each other."""

from __future__ import annotations

import time
from collections.abc import Iterator

from stlm_kd.distributed import join_processes, launched_processes
from stlm_kd.doctor.finding import Finding
from stlm_kd.errors import StlmKdError, first_line
from stlm_kd.lazy import torch
from stlm_kd.placement import placement

_NUMBERS = 1_000_000


def check_processes() -> Iterator[Finding]:
    """Join the other processes and add numbers over all of them, by gloo and by NCCL where there are GPUs.

    All processes must call this. Those that do not come in time, or differ in versions, are named.
    """
    size = launched_processes()
    if size == 1:
        yield Finding("processes", "ok", "1; with --processes 2, or under a launcher, several are tried")
        return
    try:
        join_processes()
        yield _added("cpu", size)
        have = _having_gpus(size)
        if len(have) == size:
            yield _added("cuda", size)
        elif have:
            without = ", ".join(f"process {rank}" for rank in range(size) if rank not in have)
            cure = "see why PyTorch finds no GPU there, or set CUDA_VISIBLE_DEVICES= everywhere"
            yield Finding("processes", "fault", f"no GPU is found by {without}, and others have one", cure)
    except (StlmKdError, RuntimeError) as error:
        cure = "see what the others printed; the ports between the nodes must be open (docs/launching.md)"
        yield Finding("processes", "fault", first_line(error), cure)


def _having_gpus(size: int) -> list[int]:
    """The processes that find a GPU."""
    from torch import distributed

    found = torch.zeros(size)
    found[placement().rank] = float(torch.cuda.is_available())
    distributed.all_reduce(found)
    return [rank for rank in range(size) if found[rank] > 0]


def _added(device: str, size: int) -> Finding:
    from torch import distributed

    place = placement()
    numbers = torch.full((_NUMBERS,), float(place.rank + 1), device=device)
    distributed.all_reduce(numbers)  # the first one connects the processes
    numbers.fill_(place.rank + 1)
    begun = time.perf_counter()
    distributed.all_reduce(numbers)
    found, expected = float(numbers.sum()), _NUMBERS * size * (size + 1) / 2
    took_ms = (time.perf_counter() - begun) * 1e3
    backend = "gloo" if device == "cpu" else "NCCL"
    where = f"{size} on {place.nodes} node{'s' if place.nodes > 1 else ''} by {backend}"
    if found != expected:
        cure = "check the network, and other versions of PyTorch and the driver"
        return Finding("processes", "fault", f"{where}: the sum is {found}, not {expected}", cure)
    return Finding("processes", "ok", f"{where}: 4 MB added in {took_ms:.0f} ms")
