"""Read a cache: look up the teacher's outputs of a batch by row number. Shapes: B rows, T positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stlm_kd.artifacts.hashing import first_change
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import CheckpointError
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.teachers.cache.format import Layout, Manifest, read_manifest, shard_name
from stlm_kd.teachers.cache.shards import Array, Shard, checksums, open_shard
from stlm_kd.teachers.targets import Logits


@dataclass(frozen=True, slots=True)
class Found:
    """Cached values of a batch: the mask of its tokens (B, T), or examples (B,), and columns in order."""

    kept: Tensor
    columns: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Items:
    """Cached values of consecutive items: tokens and checksum of each, and columns, one entry per token."""

    lengths: Array
    checks: Array
    columns: Mapping[str, Array]


class TeacherCache:
    """A cache's files, memory-mapped."""

    def __init__(self, folder: Path, manifest: Manifest, shards: list[Shard]) -> None:
        self.folder, self.manifest = folder, manifest
        self._shards = shards

    @classmethod
    def open(cls, folder: Path, *, every_byte: bool = True) -> TeacherCache:
        """Open the cache in a folder, verifying the shards' sizes, and with ``every_byte`` their hashes.

        Raises MissingResourceError without a cache, and CheckpointError if a shard changed after completion.
        """
        manifest = read_manifest(folder)
        shards = []
        for number, record in enumerate(manifest.shards):
            path = folder / shard_name(number)
            size = path.stat().st_size if path.is_file() else None
            if size != record.bytes:
                found = "missing" if size is None else f"{size:,} bytes found"
                raise CheckpointError(f"{path}: {found}, expected {record.bytes:,}; rebuild the cache")
            if every_byte and (change := first_change(folder, {path.name: record.sha256})):
                raise CheckpointError(f"{folder}/{change} since the cache was completed; rebuild the cache")
            begin = number * manifest.items_per_shard
            items = min(manifest.items_per_shard, manifest.items - begin)
            shards.append(open_shard(path, manifest.layout, items))
        if sum(shard.tokens for shard in shards) != manifest.tokens:
            raise CheckpointError(
                f"{folder}: number of tokens differs between shards and manifest; rebuild the cache"
            )
        return cls(folder, manifest, shards)

    @property
    def layout(self) -> Layout:
        return self.manifest.layout

    def items(self, wanted: range) -> Items:
        """Cached values of consecutive items."""
        lengths, checks = [], []
        parts: dict[str, list[Array]] = {name: [] for name in self.layout.columns()}
        size = self.manifest.items_per_shard
        for number in range(wanted.start // size, -(-wanted.stop // size)):
            shard = self._shards[number]
            first, last = max(wanted.start - number * size, 0), min(wanted.stop - number * size, size)
            lengths.append(np.diff(shard.ends[first : last + 1]))
            checks.append(shard.checks[first:last])
            for name, column in shard.columns.items():
                parts[name].append(column[shard.ends[first] : shard.ends[last]])
        columns = {name: self._joined(own, name) for name, own in parts.items()}
        return Items(np.concatenate(lengths), np.concatenate(checks), columns)

    def find(self, batch: AnyBatch) -> Found:
        """Cached values of a batch on the CPU, for its masks; CheckpointError if other tokens were cached."""
        kept = kept_positions(batch, self.layout)
        counts = kept.reshape(len(kept), -1).sum(1).tolist()
        slices: list[tuple[Shard, slice]] = []
        rows = zip(batch.example_ids.tolist(), checksums(batch), counts, strict=True)
        for row, check, count in rows:
            if row < 0:
                continue
            shard, item = self._item(row, check)
            begin, end = int(shard.ends[item]), int(shard.ends[item + 1])
            if end - begin != count:
                raise self._other(row, f"{end - begin} of its tokens are cached, expected {count}")
            slices.append((shard, slice(begin, end)))
        columns = {
            name: self._joined([shard.columns[name][own] for shard, own in slices], name)
            for name in self.layout.columns()
        }
        ids = columns.get("ids")
        if ids is not None and ids.size and int(ids.max()) >= self.layout.vocabulary:
            raise CheckpointError(
                f"{self.folder}: token id {int(ids.max())} found, expected ids below "
                f"{self.layout.vocabulary}; the cache is damaged, rebuild it"
            )
        return Found(kept, columns)

    def _joined(self, parts: list[Array], name: str) -> Array:
        if parts:
            return np.concatenate(parts)
        dtype, width = self.layout.columns()[name]
        return np.empty((0, width) if width else (0,), dtype)

    def _item(self, row: int, check: int) -> tuple[Shard, int]:
        """Shard and index of the row's mask variant whose checksum matches."""
        manifest = self.manifest
        if row >= manifest.rows:
            raise self._other(row, f"the cache has {manifest.rows} rows")
        for item in range(row * manifest.variants, (row + 1) * manifest.variants):
            number, place = divmod(item, manifest.items_per_shard)
            if self._shards[number].checks[place] == check:
                return self._shards[number], place
        raise self._other(row, "its tokens differ")

    def _other(self, row: int, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder}: row {row} of the training data is not the one that was cached ({why}); "
            "rebuild the cache from this recipe"
        )


def kept_positions(batch: AnyBatch, layout: Layout) -> Tensor:
    """Mask of the tokens that a cache stores, (B, T) bool; of examples, (B,)."""
    if not isinstance(batch, Batch):
        return batch.example_ids >= 0
    return batch.labels != IGNORED if layout.positions == "labels" else batch.attention_mask


def distribution(found: Found, layout: Layout) -> TopKTail | Logits:
    """The cached distribution at each position of the batch; arbitrary where nothing is cached."""
    if layout.logits:
        return Logits(_placed(found, "logits"))
    log_probs, tail = _placed(found, "log_probs"), _placed(found, "tail")
    # Half precision changes a probability by at most 0.4 % (below e**-8); renormalise the sum.
    total = torch.logaddexp(log_probs.logsumexp(-1), tail) if layout.head else tail
    total = torch.where(found.kept, total, 0.0)
    return TopKTail(
        ids=_placed(found, "ids"),
        log_probs=log_probs - total[..., None],
        tail=tail - total,
        entropy=_placed(found, "entropy"),
        temperature=layout.temperature,
        vocabulary=layout.vocabulary,
        label_log_probs=_placed(found, "label_log_probs"),
    )


def states(found: Found, layout: Layout) -> dict[str, Tensor]:
    """The cached hidden states, (B, T, D) each."""
    return {site: _placed(found, f"state.{site}") for site in layout.states}


def _placed(found: Found, name: str) -> Tensor:
    """Scatter a column to the positions of its tokens, in the compute dtype; zeros elsewhere."""
    column = found.columns[name]
    dtype = torch.int64 if name == "ids" else torch.float32
    values = torch.from_numpy(column.astype(np.int64) if name == "ids" else column).to(dtype)
    if bool(found.kept.all()):
        return values.reshape(*found.kept.shape, *values.shape[1:])
    placed = values.new_zeros(*found.kept.shape, *values.shape[1:])
    placed[found.kept] = values
    return placed
