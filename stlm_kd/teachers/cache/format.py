"""The format of a cache: columns per token, and the manifest.

A folder contains ``manifest.json``, ``shard-00000.safetensors`` and so on. An *item* is one training row with
one variant of its masks: item ``row * variants + variant``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import in_the_way, read_json, write_text
from stlm_kd.artifacts.hashing import sealed, unsealed
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.models.layer_alignment import Site

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 1 << 26
SMALL_IDS = 1 << 16
"""Vocabularies up to this size have ids of two bytes."""

Json = JsonValue
Positions = Literal["labels", "attended"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns stored per token or example.

    Ids of tokens or classes are below ``vocabulary``. Of each token's distribution at the ``temperature``,
    the ``head`` largest entries are stored exactly, and ``draws`` samples of the tail; with ``logits``, all
    logits of each example instead (``head`` 0). ``positions``: tokens with a label, or all but padding.
    ``states``: the layers of stored hidden states, with their width.
    """

    vocabulary: int
    head: int
    draws: int
    temperature: float = 1.0
    positions: Positions = "labels"
    logits: bool = False
    states: Mapping[str, int] = field(default_factory=dict)

    def columns(self) -> dict[str, tuple[np.dtype[np.generic], int]]:
        """Dtype and width of each column by name; width 0 for a scalar."""
        if self.logits:
            return {"logits": (np.dtype("<f4"), self.vocabulary)}
        half = np.dtype("<f2")
        ids = np.dtype("<u2" if self.vocabulary <= SMALL_IDS else "<u4")
        return {
            "ids": (ids, self.head + self.draws),
            "log_probs": (half, self.head),
            "tail": (half, 0),
            "entropy": (half, 0),
            "label_log_probs": (half, 0),
            **{f"state.{site}": (half, width) for site, width in self.states.items()},
        }

    def sites(self) -> dict[str, Site]:
        """The layers of the stored hidden states, by column name."""
        named: dict[str, Site] = {"embeddings": "embeddings", "last": "last"}
        return {name: named[name] if name in named else int(name) for name in self.states}

    @property
    def token_bytes(self) -> int:
        """Bytes per token, without the index."""
        return sum(dtype.itemsize * max(width, 1) for dtype, width in self.columns().values())


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """Size and hash of a shard's file."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a cache.

    Shards have ``items_per_shard`` items, the last one fewer; without masking, ``variants`` is 1. ``tokens``
    counts the stored tokens of all items. ``covered`` is the mean probability of the head (1 for logits),
    ``entropy`` the mean in nats (0 for logits), ``flops`` those of building it (None: unknown). ``made_of``
    determines the content: fingerprints of teacher, tokenizer and data, and options. ``source`` is the origin
    in terms of a recipe, to rebuild the cache.
    """

    layout: Layout
    rows: int
    variants: int
    items_per_shard: int
    tokens: int
    shards: tuple[ShardRecord, ...]
    covered: float
    entropy: float
    flops: int | None
    made_of: Mapping[str, Json]
    source: Mapping[str, Json]
    format: int = FORMAT_VERSION

    @property
    def items(self) -> int:
        return self.rows * self.variants

    @property
    def num_bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, hex."""
        text = json.dumps([asdict(self.layout), [shard.sha256 for shard in self.shards]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write the manifest into a cache's folder, atomically."""
        write_text(folder / MANIFEST, json.dumps(sealed(asdict(self)), indent=1) + "\n")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """Read and validate the manifest in a folder.

    Raises MissingResourceError if it is missing or unreadable, CheckpointError if damaged or of another
    format.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        why = f"no {MANIFEST} in it" if folder.is_dir() else "no such folder"
        raise MissingResourceError(
            f"{folder}: no teacher cache there ({why}); make one with stlm-kd teacher cache -r RECIPE"
        )
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise CheckpointError(f"{path}: larger than any manifest of a teacher cache; not one")
        content = unsealed(read_json(path, nan=True), is_required=False)
    except OSError as error:
        fault = in_the_way(error) or f"{path}: cannot be read ({error.strerror})"
        raise MissingResourceError(fault) from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); rebuild the cache") from error
    found = content.get("format")
    if found != FORMAT_VERSION:
        raise CheckpointError(f"{path}: format {found} found, expected {FORMAT_VERSION}; rebuild the cache")
    try:
        manifest = _MANIFESTS.validate_python(content)
    except ValidationError as error:
        line = error.errors(include_url=False)[0]
        place = ".".join(map(str, line["loc"]))
        raise CheckpointError(f"{path}: damaged at {place} ({line['msg']}); rebuild the cache") from error
    _check(path, manifest)
    return manifest


def _check(path: Path, manifest: Manifest) -> None:
    layout = manifest.layout
    whole = [layout.vocabulary, manifest.rows, manifest.variants, manifest.items_per_shard]
    shards = -(-manifest.items // max(manifest.items_per_shard, 1))
    sound = (
        min(whole) >= 1
        and 0 <= layout.head <= layout.vocabulary
        and layout.draws >= 0
        and layout.temperature > 0
        and all(name in ("embeddings", "last") or name.isdecimal() for name in layout.states)
        and min([1, *layout.states.values()]) >= 1
        and len(manifest.shards) == shards
    )
    if not sound:
        raise CheckpointError(f"{path}: damaged, its numbers are inconsistent; rebuild the cache")


_MANIFESTS: TypeAdapter[Manifest] = TypeAdapter(Manifest)


WORDS = {
    "teacher": "the teacher",
    "tokenizer": "the student's tokenizer",
    "task": "the task",
    "text": "the training data and its share",
    "seed": "the seed that draws the examples",
    "context": "data.context",
    "masked_share": "data.masked_share",
    "variants": "the masks of each row",
    "temperature": "the temperature",
    "positions": "the positions that objectives count",
    "top": "the number of top-k tokens",
    "draws": "the number of tail samples",
    "states": "the cached hidden states",
    "precision": "the precision of the computation",
    "weights": "the precision of the teacher's weights",
}
"""Descriptions of the inputs that determine a cache's content."""


OF_ONE_CACHE = ("teacher", "top", "draws", "states", "precision", "weights")
"""Inputs in which caches of the same tokens may differ."""
