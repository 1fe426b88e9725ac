"""Refuse files of finished stages and runs that are not as they were completed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stlm_kd.artifacts.hashing import first_change
from stlm_kd.artifacts.record import read_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD
from stlm_kd.artifacts.stage_store import STAGE, StageRecord
from stlm_kd.errors import CheckpointError

_LEVELS = 4
"""How deep a run's files lie in its folder: the reports of ``making/<teacher>/<training>/``."""


def refuse_changed(path: Path) -> None:
    """Check a file, or the files of a folder, against the manifest of the stage or run that holds it.

    Raises:
        CheckpointError: A file changed, is gone, or is new in a model's folder; or the manifest is damaged.
    """
    path = path.absolute()
    for folder in (path, *path.parents[:_LEVELS]):
        if (folder / STAGE).is_file():
            what, change = _of_stage(folder, path)
        elif (folder / RECORD).is_file() and (folder / RECIPE).is_file():
            what, change = "run", _of_run(folder, path)
        else:
            continue
        if change is None:
            return
        raise CheckpointError(
            f"{folder}/{change} since this {what} was completed; give the run's command again to restore it "
            "(to work with changed files, copy the folder to another place)"
        )


def _of_run(folder: Path, path: Path) -> str | None:
    """What changed of a file of a run, or of the files in a folder of it."""
    return first_change(folder, _within(read_record(folder / RECORD).files, folder, path))


def _of_stage(folder: Path, path: Path) -> tuple[str, str | None]:
    """The kind of a stage, and what changed of a file in it, or of all its files."""
    found = StageRecord.of(folder)
    if found is None:
        return "stage", f"{STAGE}: damaged"
    if path.is_file():
        return found.kind, first_change(folder, _within(found.files, folder, path))
    return found.kind, found.change(folder)


def _within(files: Mapping[str, str], folder: Path, path: Path) -> dict[str, str]:
    """The files of a manifest at or below a path."""
    return {name: digest for name, digest in files.items() if (folder / name).is_relative_to(path)}
