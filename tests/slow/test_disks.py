"""Disks that are full, closed or gone, memory that ends, clocks that go back: one message, and the same end.

A condition begins at a write of the command: at the n-th time that it opens a file, makes a folder or renames
below its output folder. When the condition is over, the same command ends as one that met none.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from stlm_kd.artifacts import run_dir
from tests.support.road import stlm_kd

COMMANDS = {
    "distill": "distill -r plain.yaml train.steps=3 train.checkpoint_every=2 --no-rehearsal",
    "adapt": "adapt-teacher -r adapts.yaml g teachers[0].adapt.tokens=2k --no-rehearsal",
    "cache": "teacher cache -r taught.yaml data.fraction=.2",
}


@dataclass
class Writes:
    """The writes below a folder, which are counted while ``at`` is set; at the last one ``act`` is called."""

    at: int | None = None
    below: str = ""
    act: Callable[[], object] = field(default=lambda: None)

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        if self.at is None or event not in ("open", "os.mkdir", "os.rename"):
            return
        reads = event == "open" and not (isinstance(given[1], str) and {*given[1]} & {*"wax+"})
        if reads or not str(given[0]).startswith(self.below):
            return
        self.at -= 1
        if self.at == 0:
            self.at = None
            self.act()


WRITES = Writes()


@pytest.fixture(scope="module", autouse=True)
def hooked() -> None:
    sys.addaudithook(WRITES)  # which cannot be taken back, so it does nothing outside these tests


def run(command: str, out: Path) -> tuple[int, str]:
    """Exit code and messages; what is no error of ours fails the test."""
    found = stlm_kd(*COMMANDS[command].split(), "--output-dir", str(out))
    assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
    return found.exit_code, found.stderr


def result(out: Path) -> dict[str, bytes]:
    """All weights and shards, by path; nothing unfinished is beside them."""
    paths = [path for path in out.rglob("*") if path.is_file()]
    ends = (".unfinished", ".replaced", ".partial")
    assert not [path for path in paths if path.name.endswith(ends)]
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in paths
        if path.suffix in (".safetensors", ".bin", ".npy") and "checkpoints" not in path.parts
    }


@pytest.fixture(scope="module")
def whole(
    road: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[int, dict[str, bytes]]]:
    """The number of writes of a command and what it makes."""
    known: dict[str, tuple[int, dict[str, bytes]]] = {}

    def of(command: str) -> tuple[int, dict[str, bytes]]:
        if command not in known:
            out = tmp_path_factory.mktemp("whole")
            WRITES.at, WRITES.below, most = 10**6, str(out), 10**6
            code, said = run(command, out)
            assert code == 0, said
            known[command] = (most - (WRITES.at or 0), result(out))
            WRITES.at = None
        return known[command]

    return of


class Condition:
    """What happens to an output folder, which ``begin`` starts and ``end`` ends."""

    codes = (1, 5)

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.patch = out, monkeypatch
        out.mkdir()

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def says(self) -> str:
        return str(self.out)


class Full(Condition):
    """A disk without space."""

    limits = ("size", "100m")

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(out, monkeypatch)
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", out], capture_output=True
        )
        if mounted.returncode != 0:
            pytest.skip("only root may mount a disk")

    def begin(self) -> None:
        found = os.statvfs(self.out)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self.remount(f"size={max(used, found.f_frsize)}")

    def end(self) -> None:
        self.remount("size=100m,nr_inodes=10000,rw")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.out], check=True)


class NoInodes(Full):
    """A disk without room for another name."""

    def begin(self) -> None:
        found = os.statvfs(self.out)
        self.remount(f"nr_inodes={found.f_files - found.f_ffree}")


class NoPermission(Condition):
    """Folders that may not be written, also by root, which loses the right to do it anyhow."""

    def begin(self) -> None:
        self.folders = [self.out, *(path for path in self.out.rglob("*") if path.is_dir())]
        for folder in self.folders:
            folder.chmod(0o555)
        self.had = set_capabilities(lambda known: known & ~0b10)

    def end(self) -> None:
        set_capabilities(lambda known: self.had)
        for folder in self.folders:
            folder.chmod(0o755)


def set_capabilities(change: Callable[[int], int]) -> int:
    """Change the effective capabilities of this thread (bit 1: ignore permissions); returns the old ones."""
    system, header, data = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert system.capget(header, data) == 0
    before = data[0]
    data[0] = change(before)
    assert system.capset(header, data) == 0
    return before


class Gone(Condition):
    """The run's folder is removed."""

    names = "*-*"
    codes = (0, 1, 5)

    def begin(self) -> None:
        for path in self.out.glob(self.names):
            shutil.rmtree(path, ignore_errors=True)


class StagesGone(Gone):
    names = "stages"


class AllGone(Gone):
    names = "*"


class NoMemory(Condition):
    codes = (5,)

    def begin(self) -> None:
        raise MemoryError

    def says(self) -> str:
        return "out of memory (MemoryError); use smaller batches"


class ClockBack(Condition):
    """Each look at the clock shows an earlier time, and all files are of the future."""

    codes = (0,)

    def begin(self) -> None:
        now = [time.time()]
        for path in self.out.rglob("*"):
            os.utime(path, (now[0] + 1e7, now[0] + 1e7))

        def earlier() -> float:
            now[0] -= 100
            return now[0]

        self.patch.setattr(time, "time", earlier)

    def end(self) -> None:
        self.patch.undo()


CONDITIONS = (Full, NoInodes, NoPermission, Gone, StagesGone, AllGone, NoMemory, ClockBack)
QUICK = {("distill", Full), ("distill", NoPermission), ("distill", Gone)}


@pytest.fixture
def place(road: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.chdir(road)
    yield tmp_path / "out"
    WRITES.at = None
    subprocess.run(["umount", "--lazy", tmp_path / "out"], capture_output=True)


def cases() -> list[Any]:
    found = []
    for command in COMMANDS:
        for kind in CONDITIONS:
            for number in range(4):
                marks = () if (command, kind) in QUICK and number == 0 else (pytest.mark.long,)
                name = f"{command}-{kind.__name__}-{number}"
                found.append(pytest.param(command, kind, number, marks=marks, id=name))
    return found


@pytest.mark.parametrize(("command", "kind", "number"), cases())
def test_whatever_befalls_the_disk_one_message_says_so_and_the_same_command_ends_the_same(
    command: str,
    kind: type[Condition],
    number: int,
    place: Path,
    whole: Callable[[str], tuple[int, dict[str, bytes]]],
) -> None:
    writes, expected = whole(command)
    at = random.Random(f"{command} {kind.__name__} {number}").randint(2, writes)
    with pytest.MonkeyPatch.context() as patch:
        condition = kind(place, patch)
        WRITES.at, WRITES.below, WRITES.act = at, str(place), condition.begin
        try:
            code, said = run(command, place)
            assert WRITES.at is None, "it began"
        finally:
            condition.end()
    assert code in condition.codes, said
    assert code == 0 or condition.says() in said.splitlines()[-1], said
    code, said = run(command, place)
    assert code == 0, said
    assert result(place) == expected


def test_a_disk_that_is_read_only_is_read_and_named(place: Path) -> None:
    disk = Full(place, pytest.MonkeyPatch())
    assert run("distill", place)[0] == 0
    (made,) = place.glob("plain-*")
    disk.remount("ro")
    for words in ("runs show", "recipe verify"):
        assert stlm_kd(*words.split(), str(made)).exit_code == 0
    for command in COMMANDS:
        code, said = run(command, place)
        assert code == 5 and f"{place}/" in said and "(Read-only file system)" in said, said
    code = stlm_kd("report", str(made), "--html", str(place / "page.html")).exit_code
    assert code == 5 and stlm_kd("runs", "list", "--output-dir", str(place)).exit_code == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nOf the memory"),
        OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ends_is_one_message_of_any_command(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path) -> None:
        raise error

    monkeypatch.setattr(run_dir, "list_runs", fails)
    found = stlm_kd("runs", "list")
    assert found.exit_code == 5 and found.stderr.count("\n") == 1, repr(found.exception)
    assert "out of memory (" in found.stderr and "use smaller batches" in found.stderr
