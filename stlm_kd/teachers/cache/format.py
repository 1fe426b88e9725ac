"""What a cache keeps of each token, and the manifest that says what a folder must hold.

A folder holds ``manifest.json`` and ``shard-00000.safetensors`` and so on. An *item* is one training row
under one variant of its masks: item ``row * variants + variant``. Every shard but the last has as many items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue, TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import written_whole
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
    """What is kept of each token, or of each example.

    Attributes:
        vocabulary: Outcomes; ids are below it.
        head: The most probable outcomes, kept exactly; 0 where logits are kept.
        draws: From the other outcomes.
        temperature: By which the teacher is softened.
        positions: Tokens that are kept: those with a label, or all that are not padding.
        logits: Whether all logits are kept in place of head and draws, one row for each example.
        states: Sites of hidden states that are kept too, and their width.
    """

    vocabulary: int
    head: int
    draws: int
    temperature: float = 1.0
    positions: Positions = "labels"
    logits: bool = False
    states: Mapping[str, int] = field(default_factory=dict)

    def columns(self) -> dict[str, tuple[np.dtype[np.generic], int]]:
        """Type and width of each kept thing, by name; width 0 for a number."""
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
        """The sites of the hidden states that are kept, by their names here."""
        named: dict[str, Site] = {"embeddings": "embeddings", "last": "last"}
        return {name: named[name] if name in named else int(name) for name in self.states}

    @property
    def token_bytes(self) -> int:
        """Bytes of a token, the index left out."""
        return sum(dtype.itemsize * max(width, 1) for dtype, width in self.columns().values())


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What a shard's file must be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a cache holds.

    Attributes:
        layout: Of its tokens.
        rows: Training rows.
        variants: Of the masks of each row; 1 where nothing is masked.
        items_per_shard: Of every shard but the last.
        tokens: That are kept, over all items.
        shards: In order.
        covered: The mean probability of the head; 1 of logits.
        entropy: The mean entropy, in nats; 0 of logits.
        flops: What it took to make; None where that is not known.
        made_of: What decides the content: fingerprints of teacher, tokenizer and data, and options.
        source: Where it came from, in the words of a recipe: how to make it again.
        format: The version of this layout.
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
        """Rows under all variants."""
        return self.rows * self.variants

    @property
    def num_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is kept, hex."""
        text = json.dumps([asdict(self.layout), [shard.sha256 for shard in self.shards]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write it into a cache's folder, whole or not at all."""
        text = json.dumps({f.name: _plain(getattr(self, f.name)) for f in fields(self)}, indent=1)
        with written_whole(folder / MANIFEST) as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def read_manifest(folder: Path) -> Manifest:
    """The manifest in a folder, each of its fields of the right kind.

    Raises:
        MissingResourceError: There is none, or it cannot be read.
        CheckpointError: It is of another format, damaged, or contradicts itself.
    """
    path = folder / MANIFEST
    if not path.is_file():
        why = f"no {MANIFEST} in it" if folder.is_dir() else "no such folder"
        raise MissingResourceError(
            f"{folder}: no teacher cache there ({why}); make one with stlm-kd teacher cache -r RECIPE"
        )
    try:
        if path.stat().st_size > LARGEST_MANIFEST:
            raise CheckpointError(f"{path}: larger than any manifest of a teacher cache; not one")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); make the cache anew") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {found} found; this version reads {FORMAT_VERSION}; make the cache anew"
        )
    try:
        manifest = _MANIFESTS.validate_python(content)
    except ValidationError as error:
        line = error.errors(include_url=False)[0]
        place = ".".join(map(str, line["loc"]))
        raise CheckpointError(f"{path}: damaged at {place} ({line['msg']}); make the cache anew") from error
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
        raise CheckpointError(f"{path}: damaged, its numbers contradict each other; make the cache anew")


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [asdict(entry) for entry in value]
    return asdict(value) if isinstance(value, Layout) else value


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
    "top": "the likeliest outcomes that are kept",
    "draws": "the draws from the others",
    "states": "the hidden states that are kept",
    "precision": "the precision of the computation",
    "weights": "the precision of the teacher's weights",
}
"""What decides a cache's content, as people call it."""


OF_ONE_CACHE = ("teacher", "top", "draws", "states", "precision", "weights")
"""In which caches of the same tokens may differ."""
