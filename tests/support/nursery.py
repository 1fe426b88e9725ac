"""Real processes that run commands without importing PyTorch first: they are forked where that is done.

``python -m tests.support.nursery SOCKET`` imports everything and waits. ``python tests/support/nursery.py
SOCKET WORDS…`` stands for ``python -m stlm_kd WORDS…``: it passes its environment, folder and standard
streams on, and ends as the forked process does. What its own process is sent, the forked one gets; SIGUSR1
stops that one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def ask(place: str, words: list[str]) -> int:
    """Have a process forked that runs the command, and end as it ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(place)
        wish = json.dumps(
            {"words": words, "environment": dict(os.environ), "folder": str(Path.cwd())}
        ).encode()
        socket.send_fds(line, [len(wish).to_bytes(8, "big")], [0, 1, 2])
        line.sendall(wish)
        answers = line.makefile()
        child = int(answers.readline())
        for number in NUMBERS:
            signal.signal(number, lambda number, frame: os.kill(child, number))
        signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(child, signal.SIGSTOP))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
        code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def program(place: str) -> tuple[str, ...]:
    """What stands for ``python -m stlm_kd``."""
    return (sys.executable, "-S", "-E", __file__, place)


@contextmanager
def opened(folder: Path) -> Iterator[str]:
    """The place of a nursery that lives within the block."""
    from tests.support.paths import ROOT

    place = folder / "socket"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.nursery", str(place)], cwd=ROOT, env=environment
    )
    try:
        while not place.exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield str(place)
    finally:
        process.kill()
        process.wait()


def forked() -> list[psutil.Process]:
    """All processes that live in the nurseries of this one."""
    import psutil

    nurseries = [p for p in psutil.Process().children() if "tests.support.nursery" in p.cmdline()]
    return [child for nursery in nurseries for child in nursery.children(recursive=True)]


def serve(place: str) -> None:
    """Fork a keeper for each that asks, which forks the process itself and tells how it ended."""
    import_everything()
    from stlm_kd.cli.launching import processes as launching

    launching.PROGRAM = program(place)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(place)
        door.listen()
        while True:
            line, _ = door.accept()
            if os.fork() == 0:
                door.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return _keep(line)
            line.close()


def _keep(line: socket.socket) -> None:
    head, streams, _, _ = socket.recv_fds(line, 8, 3)
    wish = json.loads(line.makefile().read(int.from_bytes(head, "big")))
    child = os.fork()
    if child == 0:
        line.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return _live(wish["words"], wish["environment"], wish["folder"])
    for stream in [0, 1, 2, *streams]:
        os.close(stream)
    line.sendall(f"{child}\n".encode())
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if select.select([line], [], [], 0.02)[0]:  # closed: who asked was killed
            os.kill(child, signal.SIGKILL)
    _, status = ended
    line.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _live(words: list[str], environment: dict[str, str], folder: str) -> None:
    from stlm_kd.cli.main import app

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["stlm-kd", *words]
    app()


def import_everything() -> None:
    """Import what commands and trainings import, and build models of each kind."""
    import gc
    from contextlib import redirect_stdout

    os.environ["DS_ACCELERATOR"] = "cpu"
    with redirect_stdout(sys.stderr):
        import deepspeed.ops  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    import stlm_kd.pipeline.adapt
    import stlm_kd.pipeline.distill
    import stlm_kd.tracking.opening  # noqa: F401
    from stlm_kd.models.architectures.mobillama import register
    from tests.support.pico import pico_model

    assert AutoModelForCausalLM and AutoModelForMaskedLM
    register()
    for family in ("gpt2", "llama", "bert"):
        pico_model(family)
    gc.freeze()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        raise SystemExit(ask(sys.argv[1], sys.argv[2:]))
