"""The place of this process among those of its command, as its launcher states it.

torchrun, ``accelerate launch``, ``deepspeed`` and ``--processes`` set RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. ``srun`` sets SLURM_PROCID and SLURM_STEP_NUM_TASKS; where another launcher runs
in a task, its variables count. The script of ``sbatch`` is one process, whatever SLURM_NTASKS says: it is no
step.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from stlm_kd.errors import UsageError, one_line

LOOPBACK = "127.0.0.1"
_OWN_PLACES = {"TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "CROSS_SIZE"}
"""Variables of launchers that start several processes themselves: torchrun and the like, DeepSpeed's."""
_NO_STEPS = 0xFFFFFFF0
"""From here on, SLURM's numbers of steps are names, such as that of the batch script."""
_MOST_HOSTS = 100_000


@dataclass(frozen=True, slots=True)
class Placement:
    """A process among those of its command.

    Attributes:
        rank: Its number, from 0.
        size: Number of processes; 1 without a launcher.
        local_rank: Its number on its node.
        local_size: Number of processes on its node.
        nodes: Number of nodes, as far as it is known.
        host: Where process 0 listens; "" if no launcher said so.
        port: On which port; 0 if no launcher said so.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    nodes: int = 1
    host: str = ""
    port: int = 0

    @property
    def leads_node(self) -> bool:
        """Whether it is the first one of its node, if those of a node have successive ranks."""
        return self.rank % self.local_size == 0

    @property
    def variables(self) -> dict[str, str]:
        """The variables that torchrun would set, which the libraries read."""
        return {
            "RANK": str(self.rank),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "WORLD_SIZE": str(self.size),
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(self.port),
        }


def placement(environ: Mapping[str, str] = os.environ) -> Placement:
    """The place of this process.

    A single process has no launcher: WORLD_SIZE is 1 or missing, and ranks are from elsewhere.

    Raises:
        UsageError: A variable is no number or no rank, or launchers contradict each other.
    """
    size = _number(environ, "WORLD_SIZE", 1, least=1)
    task = None if size == 1 and "WORLD_SIZE" in environ else _slurm_task(environ)
    if size == 1:
        return task or Placement()
    ranks = {name: _number(environ, name, 0) for name in ("RANK", "LOCAL_RANK")}
    for name, rank in ranks.items():
        if rank >= size:
            raise UsageError(f"{name}: {rank} found; expected less than WORLD_SIZE, which is {size}")
    rank, local_rank = ranks.values()
    if task is not None and (rank, size) != (task.rank, task.size) and not _OWN_PLACES & environ.keys():
        raise UsageError(
            f"RANK, WORLD_SIZE: process {rank} of {size} found, but srun started it as {task.rank} of "
            f"{task.size}; unset both, or start one task for each node and torchrun in it"
        )
    local = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"  # DeepSpeed's name
    local_size = _number(environ, local, size, least=1)
    host, port = environ.get("MASTER_ADDR", ""), _port(environ, 0)
    return Placement(rank, size, local_rank, local_size, max(1, size // local_size), host, port)


def missing_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """The variables without which several processes do not meet, and which are not set."""
    return [n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in environ]


def expand_hosts(text: str, place: str = "SLURM_JOB_NODELIST") -> list[str]:
    """The hosts of one of SLURM's lists, in their order; ``place`` is where it stands.

    >>> expand_hosts("a[1-3,7],b,rack[1-2]n[08-10]-ib")  # doctest: +ELLIPSIS
    ['a1', 'a2', 'a3', 'a7', 'b', 'rack1n08-ib', 'rack1n09-ib', 'rack1n10-ib', 'rack2n08-ib', ...]

    Raises:
        UsageError: It is no such list.
    """
    parts = r"[\w.-]+|\[\d+(-\d+)?(,\d+(-\d+)?)*\]"
    if not re.fullmatch(rf"({parts})+(,({parts})+)*", text, re.ASCII):
        raise UsageError(f"{place}: {one_line(text)!r} found; expected hosts, such as a[1-3,7],b")
    found: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        for host in _hosts(part):
            found.append(host)
            if len(found) > _MOST_HOSTS:
                raise UsageError(f"{place}: more than {_MOST_HOSTS:,} hosts found; expected fewer")
    return found


def _hosts(part: str) -> Iterator[str]:
    before, _, rest = part.partition("[")
    if not rest:
        yield before
        return
    numbers, _, after = rest.partition("]")
    for item in numbers.split(","):
        first, _, last = item.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from (f"{before}{number:0{len(first)}}{tail}" for tail in _hosts(after))


def _slurm_task(environ: Mapping[str, str]) -> Placement | None:
    """The place of a task of a step with several tasks; None elsewhere."""
    if "SLURM_STEP_ID" not in environ or "SLURM_PROCID" not in environ:
        return None
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    step, size = _number(environ, "SLURM_STEP_ID", 0), _number(environ, name, 1, least=1)
    if size == 1 or step >= _NO_STEPS:
        return None
    rank, local_rank = _number(environ, "SLURM_PROCID", 0), _number(environ, "SLURM_LOCALID", 0)
    if rank >= size:
        raise UsageError(f"SLURM_PROCID: {rank} found; expected less than {name}, which is {size}")
    if environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == "1":  # each task sees its own GPU alone
        local_rank = 0
    listed = next((n for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST") if n in environ), None)
    hosts = [LOOPBACK] if listed is None else expand_hosts(environ[listed], listed)
    host = environ.get("MASTER_ADDR") or (hosts[0] if len(hosts) > 1 else LOOPBACK)
    job = _number(environ, "SLURM_JOB_ID", 0)
    port = _port(environ, 15_000 + (16 * job + step) % 15_000)  # below those that systems give to clients
    return Placement(rank, size, local_rank, _local_size(environ, size, len(hosts)), len(hosts), host, port)


def _local_size(environ: Mapping[str, str], size: int, nodes: int) -> int:
    """The tasks on this node, of a list such as ``4(x2),3``; without one, as if all nodes had the same."""
    tasks = [
        int(count)
        for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        for _ in range(int(times or 1))
    ]
    node = _number(environ, "SLURM_NODEID", 0)
    return tasks[node] if node < len(tasks) else max(1, size // nodes)


def _port(environ: Mapping[str, str], default: int) -> int:
    if "MASTER_PORT" not in environ:
        return default
    if (port := _number(environ, "MASTER_PORT", 1, least=1)) >= 2**16:
        raise UsageError(f"MASTER_PORT: {port} found; expected a port below 65536")
    return port


def _number(environ: Mapping[str, str], name: str, default: int, *, least: int = 0) -> int:
    """The whole number of an environment variable."""
    text = environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) >= least):
        raise UsageError(
            f"{name}: {one_line(text)!r} found; expected a whole number from {least} on, as torchrun sets "
            "it; correct it, or unset it to run one process"
        )
    return int(text)
