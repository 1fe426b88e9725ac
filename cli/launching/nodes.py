"""Several nodes: their list, the command of each, and starting them from one by ssh."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.cli.launching import processes
from stlm_kd.cli.launching.processes import FROM_STDIN, Node, free_port, refuse_launched
from stlm_kd.errors import MissingResourceError, UsageError, one_line
from stlm_kd.training.signals import handled

START = "STLM_KD_START_NODE"
"""The environment variable with a command in place of ssh, which gets a host and a command line."""
_SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=20"
_NOT_CONNECTED = 255  # ssh's exit code for its own failures

GRACE_S = (
    20.0  # seconds for the other nodes to end after one has failed: their processes notice by themselves
)
_LAST_GRACE_S = 15.0  # between the end of a node's stdin and SIGKILL
_POLL_S = 0.1
_PASSED = re.compile(r"(STLM_KD|HF|NCCL|GLOO)_\w+|OMP_NUM_THREADS|PYTHONPATH")
_NOT_PASSED = re.compile(rf"(?!NCCL_IB_PKEY$|HF_HUB_DISABLE_IMPLICIT_TOKEN$)\w*(TOKEN|SECRET|KEY)\w*|{START}")
_WITH_PASSWORD = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, slots=True)
class Nodes:
    """The nodes of a command, as its options state them; by default there is only this one."""

    count: int = 1
    rank: int | None = None
    master: str | None = None
    hostfile: Path | None = None

    def check(self) -> None:
        """Raise UsageError if an option is missing or contradicts another."""
        if self.hostfile is not None:
            if self.count > 1 or self.rank is not None:
                raise UsageError("--hostfile: lists all nodes; leave --nodes and --node-rank out")
        elif self.count == 1:
            for name, value in (("--node-rank", self.rank), ("--master", self.master)):
                if value is not None:
                    raise UsageError(f"{name} {value}: there is one node; give --nodes, or leave {name} out")
        elif self.rank is None or self.master is None:
            missing = "--node-rank" if self.rank is None else "--master"
            raise UsageError(
                f"--nodes {self.count}: {missing} is missing; expected --node-rank, from 0 on another one on "
                "each node, and --master ADDR:PORT of node 0, the same on all"
            )
        elif self.rank >= self.count:
            raise UsageError(f"--node-rank {self.rank}: expected less than --nodes, which is {self.count}")

    def this(self) -> Node | None:
        """The node that this is; None if it is the only one."""
        if self.count == 1:
            return None
        host, port = address(self.master or "")
        return Node(self.rank or 0, self.count, host, port)


@dataclass(frozen=True, slots=True)
class Host:
    """A line of a hostfile: a host, and its number of processes."""

    name: str
    slots: int


def address(text: str) -> tuple[str, int]:
    """Host and port of ``--master``.

    >>> address("node-1:29500"), address("[fe80::1]:80")
    (('node-1', 29500), ('fe80::1', 80))

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"(?:([\w.-]+)|\[([\da-fA-F:.]+)\]):(\d{1,5})", text, re.ASCII)
    if found is None or not 0 < int(found[3]) < 2**16:
        raise UsageError(
            f"--master: {one_line(text)!r} found; expected an address and a port below 65536, such as "
            "node0:29500"
        )
    return found[1] or found[2], int(found[3])


def read_hosts(path: Path) -> list[Host]:
    """The hosts of a hostfile of DeepSpeed: a line ``HOST slots=N`` for each.

    Raises:
        MissingResourceError: It cannot be read.
        UsageError: A line is wrong, a host is there twice, or they have different numbers of slots.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingResourceError(
            f"--hostfile {path}: cannot be read ({error}); expected a text file"
        ) from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = re.fullmatch(r"((?:\w[\w.-]*@)?\w[\w.-]*)\s+slots=([1-9]\d{0,3})", text, re.ASCII)
        place = f"--hostfile {path}, line {number}: {one_line(text)!r} found;"
        if found is None:
            raise UsageError(f"{place} expected HOST slots=N, such as node0 slots=8")
        if found[1] in [host.name for host in hosts]:
            raise UsageError(f"{place} the host is there twice; expected one line with all its slots")
        if hosts and int(found[2]) != hosts[0].slots:
            raise UsageError(f"{place} expected slots={hosts[0].slots}, as {hosts[0].name} has")
        hosts.append(Host(found[1], int(found[2])))
    if not hosts:
        raise UsageError(f"--hostfile {path}: no host found; expected lines such as node0 slots=8")
    if _is_local(hosts[0].name) and not all(_is_local(host.name) for host in hosts):
        raise UsageError(f"--hostfile {path}: others cannot reach {hosts[0].name}; give this host's own name")
    return hosts


def _is_local(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def launch_nodes(words: Sequence[str], hosts: Sequence[Host], master: str | None) -> int:
    """Run a command on all hosts, from this one; print each one's command, and return the combined exit code.

    Each node's launcher gets SIGINT and SIGTERM by its stdin, and ends once that ends, so that none stays if
    this process is killed or the connection breaks.
    """
    refuse_launched("--hostfile")
    where = master or f"{hosts[0].name.rpartition('@')[2]}:{free_port()}"
    address(where)
    lines = [node_command(words, host, rank, len(hosts), where) for rank, host in enumerate(hosts)]
    start = shlex.split(os.environ.get(START) or _SSH)
    started: list[subprocess.Popen[bytes]] = []
    received: list[int] = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        for process in started:
            _tell(process, number)

    with handled(pass_on):
        try:
            for host, line in zip(hosts, lines, strict=True):
                print(shlex.join([*start, host.name, line]), file=sys.stderr, flush=True)
                watched = line.replace(" && exec env ", f" && exec env {FROM_STDIN}=1 ", 1)
                started.append(_start_node([*start, host.name, watched], prints=not started))
                for number in received:  # perhaps before it was in the list
                    _tell(started[-1], number)
            ended_here = _wait(started)
        finally:
            for process in started:
                process.kill()
                process.wait()
                _tell(process, None)
    codes = {
        host: process.returncode
        for host, process in zip(hosts, started, strict=True)
        if process not in ended_here or process.returncode == _NOT_CONNECTED
    }
    code, message = _exit_status(codes, start)
    if code == 0 and len(codes) < len(hosts):
        late = next(host.name for host in hosts if host not in codes)
        code, message = 1, f"{late}: it did not end when the others did"
    if message:
        print(message, file=sys.stderr)
    return code


def node_command(
    words: Sequence[str],
    host: Host,
    rank: int,
    count: int,
    master: str,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """A node's command line for a shell: in the same folder, with the same settings but no secrets."""
    passed = [
        f"{name}={value}"
        for name, value in sorted(environ.items())
        if _PASSED.fullmatch(name) and not (_NOT_PASSED.fullmatch(name) or _WITH_PASSWORD.search(value))
    ]
    options = ["--processes", str(host.slots)]
    if count > 1:
        options += ["--nodes", str(count), "--node-rank", str(rank), "--master", master]
    command = shlex.join(["env", *passed, *processes.PROGRAM, *words, *options])
    return f"cd {shlex.quote(str(Path.cwd()))} && exec {command}"


def _start_node(command: Sequence[str], *, prints: bool) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=None if prints else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        )
    except OSError as error:
        raise MissingResourceError(
            f"{command[0]}: cannot be run ({error.strerror}); install it, set {START} to a command that gets "
            "a host and a command line, or give the printed commands on the nodes"
        ) from error


def _tell(process: subprocess.Popen[bytes], number: int | None) -> None:
    """Send a signal's number to a node's launcher; None ends its stdin."""
    assert process.stdin is not None
    try:
        if number is None:
            process.stdin.close()
        elif not process.stdin.closed:
            process.stdin.write(b"%d\n" % number)
            process.stdin.flush()
    except OSError:  # it has ended
        return


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """Wait for all nodes; once one has failed, or the first has ended, end the others after a while.

    Returns those that were ended.
    """
    ends_at: float | None = None
    told: list[subprocess.Popen[bytes]] = []
    while running := [process for process in started if process.poll() is None]:
        has_ended = started[0].poll() is not None or any(process.poll() for process in started)
        now = time.monotonic()
        if has_ended and ends_at is None:
            ends_at = now + GRACE_S
        if ends_at is not None and now > ends_at:
            for process in running:
                process.kill() if process in told else _tell(process, None)
            told, ends_at = running, now + _LAST_GRACE_S
        time.sleep(_POLL_S)
    return told


def _exit_status(codes: Mapping[Host, int], start: Sequence[str]) -> tuple[int, str]:
    """The combined exit code of the nodes that ended by themselves, and a message if one was lost."""
    failed = max([code for code in codes.values() if 0 <= code < _NOT_CONNECTED], default=0)
    for host, code in codes.items():
        if code == _NOT_CONNECTED:
            tried = shlex.join([*start, host.name, "true"])
            return max(failed, MissingResourceError.exit_code), (
                f"{host.name}: cannot be reached, or it or the connection was lost; try {tried}, which must "
                "ask for nothing"
            )
        if code < 0 and failed <= 1:
            return 1, f"{host.name}: {start[0]} was killed by {signal.Signals(-code).name}"
    return failed, ""
