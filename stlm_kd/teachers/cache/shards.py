"""The shard files of a cache: safetensors, written atomically and memory-mapped for reading.

The library validates a file; its columns are mapped by the offsets of the header, so that no data is copied.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from stlm_kd.artifacts.atomic import parse_json, reading, remove, write_text, written_whole
from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import CheckpointError
from stlm_kd.teachers.cache.format import Layout

Array = npt.NDArray[Any]
INDEX = np.dtype("<u4")
"""Dtype of an item's number of tokens and of its checksum."""

_NAMES = {"<u2": "U16", "<u4": "U32", "<f2": "F16", "<f4": "F32"}


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive items, memory-mapped.

    ``ends`` are the items' token offsets from 0, (items + 1,), ``checks`` their checksums, (items,); columns
    are (tokens, …) each.
    """

    ends: npt.NDArray[np.int64]
    checks: npt.NDArray[np.uint32]
    columns: Mapping[str, Array]

    @property
    def tokens(self) -> int:
        return int(self.ends[-1])


def checksums(batch: AnyBatch) -> list[int]:
    """Checksum of each row's token ids, and of its labels if these are tokens."""
    ids, attended = batch.input_ids.numpy(), batch.attention_mask.numpy()
    found = [zlib.crc32(ids[row][attended[row]].tobytes()) for row in range(len(ids))]
    if not isinstance(batch, Batch):
        return found
    labels = batch.labels.numpy()
    return [zlib.crc32(labels[row][attended[row]].tobytes(), found[row]) for row in range(len(ids))]


def write_shard(
    path: Path, layout: Layout, lengths: Array, checks: Array, columns: Mapping[str, Array]
) -> None:
    """Write a shard atomically: lengths and checksums of its items, and columns, (tokens, …) each.

    Its hash is written beside it, until the cache is complete.
    """
    tensors = {
        name: np.ascontiguousarray(columns[name], dtype) for name, (dtype, _) in layout.columns().items()
    }
    tensors["lengths"], tensors["checks"] = lengths.astype(INDEX), checks.astype(INDEX)
    content = save(tensors)
    for damaged in (hash_file(path), path):
        remove(damaged)
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    write_text(hash_file(path), hashlib.sha256(content).hexdigest())


def hash_file(shard: Path) -> Path:
    """The file with the hash of a shard of an incomplete cache."""
    return shard.with_suffix(".sha256")


def open_shard(path: Path, layout: Layout, items: int) -> Shard:
    """Open a shard of ``items`` items; CheckpointError if damaged or of another layout."""
    try:
        with reading(path), safe_open(path, framework="numpy"):
            raw = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    except SafetensorError as error:
        raise _unlike(path, f"it is not a complete safetensors file ({error})") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); rebuild the cache") from error
    begin = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    header = parse_json(raw[8:begin].tobytes())
    index = {name: _view(path, raw[begin:], header, name, INDEX, (items,)) for name in ("lengths", "checks")}
    ends = np.concatenate([[0], np.cumsum(index["lengths"], dtype=np.int64)])
    tokens = int(ends[-1])
    columns = {
        name: _view(path, raw[begin:], header, name, dtype, (tokens, width) if width else (tokens,))
        for name, (dtype, width) in layout.columns().items()
    }
    return Shard(ends, index["checks"], columns)


def _view(
    path: Path,
    data: npt.NDArray[np.uint8],
    header: Mapping[str, Any],
    name: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
) -> Array:
    found, expected = header.get(name, {}), {"dtype": _NAMES[dtype.str], "shape": list(shape)}
    if {key: found.get(key) for key in expected} != expected:
        raise _unlike(path, f"{name} is {found or 'missing'}, expected {expected}")
    begin, end = found["data_offsets"]
    return data[begin:end].view(dtype).reshape(shape)


def _unlike(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: {what}; the cache is damaged, rebuild it")
