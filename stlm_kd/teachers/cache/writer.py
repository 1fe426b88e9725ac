"""Write a cache shard by shard; each is written atomically and reused when the work resumes.

A shard depends on its items alone. Shapes: B rows, T positions, n tokens, V tokens of the vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stlm_kd.artifacts.atomic import read_plain, reading
from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.errors import CheckpointError, MissingResourceError, ModelError
from stlm_kd.losses.chunked import ACCELERATOR_CHUNK_ELEMENTS, CHUNK_ELEMENTS, pieces
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers.cache.format import Json, Layout, Manifest, ShardRecord, shard_name
from stlm_kd.teachers.cache.reader import kept_positions
from stlm_kd.teachers.cache.sampling import head_and_tail, uniforms
from stlm_kd.teachers.cache.shards import Array, Shard, checksums, hash_file, open_shard, write_shard
from stlm_kd.teachers.protocol import Teacher
from stlm_kd.teachers.targets import Logits, Whole

SHARDS = 16
SHARD_BYTES = 1 << 20, 1 << 28
"""Number of shards of a cache, and their minimum and maximum bytes. Processes share the shards; a kill loses
one shard per process."""

ITEM_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Work:
    """Specification of a cache to write; all shards have ``items_per_shard`` items, the last one fewer.

    ``seed`` is that of the draws, ``micro_batch`` the rows per forward pass, and ``batch`` makes a batch of
    row numbers and their mask variants.
    """

    layout: Layout
    rows: int
    variants: int
    items_per_shard: int
    seed: int
    micro_batch: int
    batch: Callable[[Sequence[int], Sequence[int]], AnyBatch]

    @property
    def items(self) -> int:
        return self.rows * self.variants

    @property
    def num_shards(self) -> int:
        return -(-self.items // self.items_per_shard)

    def items_of(self, shard: int) -> range:
        begin = shard * self.items_per_shard
        return range(begin, min(begin + self.items_per_shard, self.items))

    def batches(self, shard: int) -> Iterator[tuple[range, AnyBatch]]:
        """The items of a shard in micro-batches; the last one may be smaller."""
        items = self.items_of(shard)
        for begin in range(items.start, items.stop, self.micro_batch):
            own = range(begin, min(begin + self.micro_batch, items.stop))
            rows, variants = zip(*(divmod(item, self.variants) for item in own), strict=True)
            yield own, self.batch(rows, variants)


def shard_items(layout: Layout, tokens: int, items: int) -> int:
    """Items per shard, given the approximate number of tokens in all items."""
    least, most = SHARD_BYTES
    whole = estimated_bytes(layout, tokens, items)
    size = min(max(whole // SHARDS, least), most)
    return min(max(1, items * size // max(whole, 1)), items)


def estimated_bytes(layout: Layout, tokens: int, items: int) -> int:
    """Estimated bytes of a cache, without headers and manifest."""
    return tokens * layout.token_bytes + items * ITEM_INDEX_BYTES


def require_space(folder: Path, needed: int, *, why: str) -> None:
    """Raise MissingResourceError if fewer bytes are free than needed."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MissingResourceError(
            f"{folder}: {why} takes about {_size(needed)}, and {_size(free)} are free; free some space, name "
            "another --output-dir, or store less per token (cache: {preset: small})"
        )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"


def unwritten(folder: Path, work: Work) -> list[int]:
    """The shards that are missing, incomplete or damaged."""
    return [shard for shard in range(work.num_shards) if not _is_whole(folder, work, shard)]


def _is_whole(folder: Path, work: Work, shard: int) -> bool:
    path = folder / shard_name(shard)
    try:
        with reading(path):
            stated = read_plain(hash_file(path)).decode(errors="replace")
            if known_sha256(path) != stated:
                return False
        open_shard(path, work.layout, len(work.items_of(shard)))
    except (CheckpointError, OSError):
        return False
    return True


def write(
    folder: Path, work: Work, teacher: Teacher, shards: Sequence[int], *, done: Callable[[int], None]
) -> None:
    """Write some shards; calls ``done`` with the number of tokens of each micro-batch."""
    for shard in shards:
        lengths: list[int] = []
        checks: list[int] = []
        parts: list[Mapping[str, Array]] = []
        for items, batch in work.batches(shard):
            kept = kept_positions(batch, work.layout)
            parts.append(columns_of(teacher, batch, kept, items, work))
            lengths += kept.reshape(len(kept), -1).sum(1).tolist()
            checks += checksums(batch)
            done(int(kept.sum()))
        columns = {name: np.concatenate([part[name] for part in parts]) for name in work.layout.columns()}
        path = folder / shard_name(shard)
        write_shard(path, work.layout, np.array(lengths), np.array(checks), columns)


def cached_outputs(layout: Layout) -> OutputSpec:
    """The teacher's outputs that a cache is made of."""
    sites = frozenset(layout.sites().values())
    return OutputSpec(head_input=not layout.logits, logits=layout.logits, sites=sites)


def columns_of(
    teacher: Teacher, batch: AnyBatch, kept: Tensor, items: range, work: Work
) -> Mapping[str, Array]:
    """The columns of the ``kept`` tokens or examples; ModelError for NaN or states above half precision."""
    layout = work.layout
    output = teacher(batch, cached_outputs(layout))
    assert output.distribution is not None and not isinstance(output.distribution, TopKTail)
    rows = output.distribution.rows(kept.to(_device(output.distribution)))
    columns: dict[str, Array] = {}
    if layout.logits:
        columns["logits"] = rows.logits(slice(None), layout.vocabulary).cpu().numpy()
    else:
        columns |= _sampled(rows, batch.labels[kept], kept, items, work)
        for name, site in layout.sites().items():
            columns[f"state.{name}"] = _half(output.observed.states[site].cpu()[kept])
    _require_numbers(columns, kept, items, work)
    return columns


def _sampled(rows: Whole, label_n: Tensor, kept_BT: Tensor, items: range, work: Work) -> Mapping[str, Array]:
    """The columns of head, tail and related values, computed in chunks of logits."""
    layout, device = work.layout, _device(rows)
    places = kept_BT.nonzero().numpy()
    numbers = uniforms(work.seed, np.asarray(items)[places[:, 0]], places[:, 1], layout.draws)
    label_n, uniforms_nM = label_n.to(device), torch.from_numpy(numbers).to(device)
    columns = {
        name: np.empty((len(places), width) if width else len(places), dtype)
        for name, (dtype, width) in layout.columns().items()
        if not name.startswith("state.")
    }
    elements = CHUNK_ELEMENTS if device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    for few in pieces(len(places), max(16, elements // layout.vocabulary)):
        logits_mV = rows.logits(few, layout.vocabulary)
        made = head_and_tail(
            logits_mV, label_n[few], uniforms_nM[few], head=layout.head, temperature=layout.temperature
        )
        for name, values in made.items():
            columns[name][few] = values.cpu().numpy()
    return columns


def _require_numbers(columns: Mapping[str, Array], kept: Tensor, items: range, work: Work) -> None:
    """Raise ModelError, naming the first row, if a column has NaN or an infinity.

    Minus infinity is the log-probability or logit of a token that the teacher rules out; it cannot rule out
    all of them.
    """
    for name, column in columns.items():
        values = column.reshape(len(column), -1)
        sound = np.isfinite(values)
        if name == "logits":
            sound = sound | (np.isneginf(values) & sound.any(-1, keepdims=True))
        elif name in ("log_probs", "tail", "label_log_probs"):
            sound = sound | np.isneginf(values)
        broken = np.flatnonzero(~sound.all(-1))
        if len(broken):
            place = int(kept.nonzero()[int(broken[0]), 0])
            raise ModelError(
                f"the teacher's outputs for row {items[place] // work.variants} of the training data contain "
                f"NaN or infinity ({name}); check that its weights are intact, or compute in another "
                "precision (train.precision, teachers[…].precision)"
            )


def _half(state_nD: Tensor) -> Array:
    """Hidden states in half precision; ModelError if values exceed its range."""
    half = state_nD.half().cpu()
    if not bool(half.isfinite().all()):
        raise ModelError(
            "the teacher's hidden states exceed the range of half precision (65,504), in which a cache "
            "stores them; remove states from teachers[…].cache, or remove the cache"
        )
    return half.numpy()


def _device(target: Whole) -> torch.device:
    return target.values.device if isinstance(target, Logits) else target.hidden.device


def complete(
    folder: Path, work: Work, *, made_of: Mapping[str, Json], source: Mapping[str, Json], flops: int | None
) -> Manifest:
    """Write the manifest of a cache whose shards are complete."""
    totals, records = np.zeros(3), []
    for shard in range(work.num_shards):
        path = folder / shard_name(shard)
        totals += _summary(open_shard(path, work.layout, len(work.items_of(shard))))
        records.append(ShardRecord(path.stat().st_size, known_sha256(path)))
    tokens = max(totals[0], 1)
    manifest = Manifest(
        layout=work.layout,
        rows=work.rows,
        variants=work.variants,
        items_per_shard=work.items_per_shard,
        tokens=int(totals[0]),
        shards=tuple(records),
        covered=1.0 if work.layout.logits else float(totals[1] / tokens),
        entropy=float(totals[2] / tokens),
        flops=flops,
        made_of=made_of,
        source=source,
    )
    manifest.write(folder)
    for shard in range(work.num_shards):
        hash_file(folder / shard_name(shard)).unlink(missing_ok=True)
    return manifest


def _summary(shard: Shard) -> Array:
    """Number of tokens, sum of the head's probability, and sum of the entropy."""
    if "tail" not in shard.columns:
        return np.array([shard.tokens, 0.0, 0.0])
    tails = np.exp(shard.columns["tail"].astype(np.float64))
    return np.array(
        [shard.tokens, float((1 - tails).sum()), float(shard.columns["entropy"].sum(dtype=np.float64))]
    )
