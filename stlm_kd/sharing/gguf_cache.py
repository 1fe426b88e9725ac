"""The user's cache of dequantised GGUF files: folders by the hash of the file, checked when they are used.

Each contains a manifest with the hashes of its files. Its time of modification says when a command last used
the folder: those that none used for ``KEPT_DAYS`` are deleted when another file is dequantised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stlm_kd.artifacts.atomic import (
    clear_unfinished_for,
    num_bytes,
    read_json,
    remove,
    storage_as_error,
    unfinished_name,
    write_json,
    written_whole,
)
from stlm_kd.artifacts.hashing import (
    cache_folder,
    first_change,
    hashes_of,
    known_sha256,
    recorded_files,
    remember,
    sealed,
    unsealed,
)
from stlm_kd.lazy import filelock
from stlm_kd.notes import note

KEPT_DAYS = 30
"""A folder that no command used for so many days is deleted."""

_FORMAT = 2
"""Increased when the folders that are made of files change."""

_MANIFEST = "manifest.json"
_DAY_S = 24 * 3600


def cached_folder(path: Path, convert: Callable[[Path], None]) -> Path:
    """The folder of a GGUF file's model in the cache, made by ``convert`` unless it is there as it was made.

    Raises:
        MissingResourceError: The cache cannot be read or written.
    """
    folder = cache_folder() / "gguf" / f"{known_sha256(path)}-{_FORMAT}"
    if _change(folder) is None:
        _mark_used(folder)
        return folder
    with storage_as_error(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(_lock(folder)):
            clear_unfinished_for(folder)
            if (change := _change(folder)) is not None:
                if folder.is_dir():
                    note(f"{folder}/{change} since it was dequantised; made again from {path}")
                with written_whole(folder) as unfinished:
                    convert(unfinished)
                    hashes = hashes_of(unfinished, unfinished.iterdir())
                    write_json(unfinished / _MANIFEST, sealed({"files": hashes}))
                remember(folder, hashes)
        _delete_unused(folder.parent)
    return folder


def _change(folder: Path) -> str | None:
    """The first file of a folder that is not as it was made, and how it differs; None if all are."""
    try:
        files = recorded_files(unsealed(read_json(folder / _MANIFEST))["files"])
        added = sorted({path.name for path in folder.iterdir()} - {*files, _MANIFEST})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST}: damaged"
    return f"{added[0]}: new" if added else first_change(folder, files)


def _mark_used(folder: Path) -> None:
    with suppress(OSError):  # a cache that others may write to
        os.utime(folder / _MANIFEST)


def _delete_unused(root: Path) -> None:
    """Delete the folders that no command used for ``KEPT_DAYS``, also those of earlier versions."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if _unused_days(folder) < KEPT_DAYS:
            continue
        with suppress(OSError, filelock.Timeout), filelock.FileLock(_lock(folder), timeout=0):
            aside, size = unfinished_name(folder), num_bytes(folder)
            folder.rename(aside)
            remove(aside)
            note(f"{folder}: not used for {KEPT_DAYS} days, deleted; {size / 1e6:,.0f} MB freed")


def _unused_days(folder: Path) -> float:
    """Days since a command used a folder; 0 if that cannot be read."""
    manifest = folder / _MANIFEST
    try:
        latest = (manifest if manifest.exists() else folder).stat().st_mtime
    except OSError:
        return 0.0
    return (time.time() - latest) / _DAY_S


def _lock(folder: Path) -> Path:
    return folder.with_suffix(".lock")
