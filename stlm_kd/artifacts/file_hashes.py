"""Manifests: the hashes of a folder's files, and of a manifest itself; what differs from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stlm_kd.artifacts.hashing import known_sha256

SEAL = "sha256"
"""The key of a manifest's own hash."""


def hashes_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files in a folder, by their relative paths, sorted."""
    return {path.relative_to(folder).as_posix(): known_sha256(path) for path in sorted(files)}


def first_change(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file that does not have its hash, and how it differs; None if all have it."""
    for name, digest in files.items():
        path = folder / name
        try:
            if known_sha256(path) == digest:
                continue
        except OSError as error:
            reason = error.strerror or type(error).__name__
            return f"{name}: {'cannot be read, ' + reason if path.exists() else 'gone'}"
        return f"{name}: changed"
    return None


def sealed(values: Mapping[str, object]) -> dict[str, object]:
    """A manifest's values with the hash of them all."""
    return {**values, SEAL: _digest(values)}


def unsealed(values: Mapping[str, object]) -> dict[str, Any]:
    """A manifest's values without their hash.

    Raises:
        ValueError: They are not those that were hashed.
    """
    plain = {name: value for name, value in values.items() if name != SEAL}
    if values.get(SEAL) != _digest(plain):
        raise ValueError("its content does not have the hash that is stated in it")
    return plain


def _digest(values: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
