"""The record of a run, ``run.json``: command, times, package versions and status."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, TypeAdapter

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.hashing import recorded_files, sealed, unsealed
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
"""Packages whose versions are recorded."""

Status: TypeAlias = Literal["running", "done", "failed", "interrupted", "killed"]
TeacherPrecision: TypeAlias = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model or data set of the Hub, as a run used it.

    Attributes:
        kind: Model or data set.
        id: Its id on the Hub.
        asked: The branch, tag or commit that was asked for; None for the main branch.
        commit: The commit that was used.
        licence: As its card says; None if unknown.
        gated: Whether its files are for accepted users only.
    """

    kind: Literal["model", "dataset"]
    id: str
    asked: str | None
    commit: str
    licence: str | None = None
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The content of ``run.json``.

    Attributes:
        name: The recipe's name.
        recipe_hash: Hash of the recipe's content.
        command: The command line, as far as it is known.
        status: Status of the run; ``killed`` is never written, but inferred when the process is gone.
        started: Time of the first start, UTC, ISO 8601.
        finished: Time of the end, UTC, ISO 8601; None before.
        message: Why the run failed or stopped; "" otherwise.
        versions: Package versions by name.
        python: Python version.
        platform: System, release and machine.
        hardware: Processors, memory and accelerators; "" if not recorded.
        pins: The models and data sets of the Hub that it used.
        teacher_precision: Of the teachers for which the recipe leaves it open, as the machine of the first
            start decided; None if it leaves none open, and in runs of earlier versions.
        paths: Absolute paths of the recipe's relative ones, by ``key.path=text``.
        lock: ``sha256:…`` of the lock that it wrote when it was done; None otherwise.
        code: The program's commit, as ``Program.code``: the first dirty one, else that of the last start.
        files: SHA-256 of the files of a run that is done, by path; {} before, and from earlier versions.
        format: Format version of the record.
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
    pins: tuple[Pinned, ...] = ()
    teacher_precision: TeacherPrecision | None = None
    paths: Mapping[str, str] = field(default_factory=dict)
    lock: str | None = None
    code: str | None = None
    files: Annotated[Mapping[str, str], AfterValidator(recorded_files)] = field(default_factory=dict)
    format: int = FORMAT_VERSION


@cache
def _records() -> TypeAdapter[Record]:
    """Made when a record is first read: that is slow. Those of earlier versions have no seal."""
    unseal = BeforeValidator(partial(unsealed, is_required=False))
    return TypeAdapter(Annotated[Record, unseal])


def new_record(name: str, digest: str, command: str) -> Record:
    """A new record for a run that starts now."""
    return Record(
        name=name,
        recipe_hash=digest,
        command=command,
        status="running",
        started=now(),
        versions=versions(),
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        hardware=hardware(),
    )


def hardware() -> str:
    """A description of available processors, memory and accelerators."""
    import torch

    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    parts = [f"{len(own)} CPU cores"]
    if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= os.sysconf_names.keys():
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        parts.append(f"{memory / 2**30:.0f} GiB of memory")
    counted = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return ", ".join([*parts, *(f"{count} x {name}" for name, count in counted.items())])


def versions() -> dict[str, str]:
    """The versions of ``PACKAGES`` that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The current time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def write_record(path: Path, record: Record) -> None:
    """Write the record into a file, atomically."""
    write_json(path, sealed(asdict(record)))


def read_record(path: Path) -> Record:
    """Read the record in a file.

    Raises:
        CheckpointError: The record is damaged, or has another format version.
    """
    record = read_saved(path, _records(), remedy="move the folder away to restart")
    if record.format != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {record.format} found, but this version reads {FORMAT_VERSION}; move the folder "
            "away to restart"
        )
    return record
