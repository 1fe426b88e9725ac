"""What ``run.json`` holds: by what a run was started, when, with which versions, and how it stands."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import TypeAdapter

from stlm_kd.artifacts.json_io import read_saved
from stlm_kd.errors import CheckpointError

FORMAT_VERSION = 1
PACKAGES = (
    "stlm-kd",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "deepspeed",
    "datasets",
    "lm-eval",
    "safetensors",
    "numpy",
    "pydantic",
)
"""Packages whose versions a run's record holds."""

Status: TypeAlias = Literal["running", "done", "failed", "interrupted", "killed"]


@dataclass(frozen=True, slots=True)
class Record:
    """What ``run.json`` holds.

    Attributes:
        name: The recipe's name.
        recipe_hash: Of what the recipe says.
        command: As it was typed, or as near as is known.
        status: How the run stands; ``killed`` is never written, but seen where the process is gone.
        started: UTC, ISO 8601; of the first start.
        finished: UTC, ISO 8601; None until it ended.
        message: Why it failed or stopped; "" otherwise.
        versions: Of the packages that compute, by name.
        python: Its version.
        platform: System, release and machine.
        hardware: Processors, memory and accelerators; "" where it was not noted.
        format: The version of this layout.
    """

    name: str
    recipe_hash: str
    command: str
    status: Status
    started: str
    finished: str | None = None
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    hardware: str = ""
    format: int = FORMAT_VERSION


_RECORDS: TypeAdapter[Record] = TypeAdapter(Record)


def new_record(name: str, digest: str, command: str) -> Record:
    """The record of a run that starts now, by this command."""
    return Record(
        name=name,
        recipe_hash=digest,
        command=command,
        status="running",
        started=now(),
        versions=_versions(PACKAGES),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        hardware=hardware(),
    )


def hardware() -> str:
    """Processors that this process may use, the machine's memory, and accelerators, in words."""
    import torch

    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    parts = [f"{len(own)} CPU cores"]
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{memory / 2**30:.0f} GiB of memory")
    counted = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join([*parts, *(f"{count} x {name}" for name, count in counted.items())])


def _versions(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_record(path: Path) -> Record:
    """The record in a file.

    Raises:
        CheckpointError: It is damaged, or of another format.
    """
    record = read_saved(path, _RECORDS, remedy="move the folder away to start anew")
    if record.format != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {record.format} found, but this version reads {FORMAT_VERSION}; move the folder "
            "away to start anew"
        )
    return record
