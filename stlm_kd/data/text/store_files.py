"""Files that can be made again from text, and the sealed manifest that says what is expected of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from stlm_kd.artifacts.atomic import open_plain, read_json, reading
from stlm_kd.artifacts.hashing import SEAL, recorded_files, unsealed
from stlm_kd.errors import DataError


class HasFiles(Protocol):
    """A manifest: what is expected of files, and their SHA-256 by name."""

    @property
    def files(self) -> Mapping[str, str]: ...


M = TypeVar("M", bound=HasFiles)


def read_manifest(folder: Path, kind: type[M], version: int) -> tuple[M, str]:
    """The sealed manifest of files that can be made again, and its hash; DataError if it is none."""
    path = folder / "manifest.json"
    try:
        with reading(path):
            content = read_json(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{folder}: no token store found (no manifest.json); build it from the text"
        ) from error
    except OSError as error:
        raise broken(folder, f"manifest.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise broken(folder, f"manifest.json is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format_version") != version:
        raise broken(folder, f"manifest.json is not of format version {version}")
    try:
        manifest = kind(**unsealed(content))
        recorded_files(manifest.files)
    except (ValueError, TypeError) as error:
        raise broken(folder, f"manifest.json: {error}") from error
    if not manifest.files:
        raise broken(folder, "manifest.json names no files")
    return manifest, str(content[SEAL])


def mapped(path: Path, dtype: npt.DTypeLike, length: int) -> npt.NDArray[Any]:
    """A file as an array that cannot be written to; DataError if it has another size."""
    expected = length * np.dtype(dtype).itemsize
    try:
        with reading(path), open_plain(path) as file:
            found = os.fstat(file.fileno()).st_size
    except OSError:
        found = 0
    if found != expected:
        raise broken(path.parent, f"{path.name} has {found:,} bytes, expected {expected:,}")
    # A plain array over the map: indexing numpy's memmap class is slower for small slices.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r", shape=(length,)))


def broken(folder: Path, what: str) -> DataError:
    """An error of files that can be made again."""
    return DataError(f"{folder}: {what}; delete the folder to rebuild it")
