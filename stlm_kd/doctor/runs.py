"""Locks of unfinished runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from stlm_kd.artifacts.run_dir import LOCK, list_runs, open_run
from stlm_kd.doctor.finding import Finding


def check_runs(output_dir: Path) -> Iterator[Finding]:
    """Who works in the runs that are not finished: a process, or none since it was killed."""
    unfinished = [run for run in list_runs(output_dir) if run.status in ("running", "killed", "damaged")]
    for run in unfinished:
        name = f"run {run.path.name}"
        if run.status == "damaged":
            cure = "move the folder away; its command makes the run again from its stages"
            yield Finding(name, "warning", "its record is damaged", cure)
        elif run.status == "running":
            pid = holder(run.path / LOCK)
            who = f"process {pid} of this host" if pid else "a process that this host does not list"
            yield Finding(name, "ok", f"held by {who}, since {run.started}")
        else:
            command = open_run(run.path).record.command or "its command"
            yield Finding(name, "warning", "nobody holds it: it was killed", f"resume it: {command}")
    if not unfinished:
        yield Finding("unfinished runs", "ok", f"none in {output_dir}")


def holder(lock: Path) -> int | None:
    """The process that holds a lock, by Linux's list of those of this host; None if it is not there."""
    try:
        found = os.stat(lock)  # noqa: PTH116
        lines = Path("/proc/locks").read_text("ascii").splitlines()
    except OSError:
        return None
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids = [int(words[4]) for line in lines if len(words := line.split()) > 5 and words[5] == place]
    return next((pid for pid in pids if pid > 0), None)
