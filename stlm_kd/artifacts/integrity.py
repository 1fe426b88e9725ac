"""Refuse files of finished stages and runs that are not as they were completed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from stlm_kd.artifacts.hashing import first_change
from stlm_kd.artifacts.record import read_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD
from stlm_kd.artifacts.stage_store import STAGE, StageRecord, change_of
from stlm_kd.errors import CheckpointError
from stlm_kd.notes import note

_LEVELS = 4
"""How deep a run's files lie in its folder: the reports of ``making/<teacher>/<training>/``."""


def refuse_changed(path: Path) -> None:
    """Check a file, or the files of a folder, against the manifest of the stage or run that holds it.

    Raises:
        CheckpointError: A file changed, is gone, or is new in a model's folder; or the manifest is damaged.
    """
    path = path.absolute()
    for folder in (path, *path.parents[:_LEVELS]):
        if os.path.lexists(folder / STAGE):
            found = StageRecord.of(folder)
            what, files = (found.kind, found.files) if found else ("stage", None)
        elif os.path.lexists(folder / RECORD) and os.path.lexists(folder / RECIPE):
            what, files = "run", read_record(folder / RECORD).files
        else:
            continue
        part = folder if path.is_dir() and what != "run" else path
        change = f"{STAGE}: damaged" if files is None else _change(folder, files, part)
        if change is None:
            return
        raise CheckpointError(
            f"{folder}/{change} since this {what} was completed; give the run's command again to restore it "
            "(to work with changed files, copy the folder to another place)"
        )


def _change(folder: Path, files: Mapping[str, str], path: Path) -> str | None:
    """What changed of a file of a manifest, or of the files in a folder of it."""
    within = {name: digest for name, digest in files.items() if (folder / name).is_relative_to(path)}
    if path.is_dir():
        if not within and not str(path.relative_to(folder)).startswith("."):  # of a rehearsal
            note(f"{path}: not checked: neither {STAGE} nor the run's {RECORD} has the hashes of its files")
        return change_of(folder, within)
    return first_change(folder, within)
