"""A corpus as token ids on disk: tokenised once, then read through a memory map.

A document is ``[start] + ids of its text + [end]``, with the start and end of ``document_ends``, such as bos
and eos, or cls and sep. The folder holds

- ``tokens-00000.bin``, ``tokens-00001.bin``, …: the concatenated ids of all documents, little-endian uint16,
  or uint32 for a vocabulary of more than 65,536; a file ends with the document that reaches ``SHARD_IDS``;
- ``offsets.bin``: int64, the begin of each document, and the end of the last;
- ``bytes.bin``: int64, the UTF-8 bytes of each document's text;
- ``hashes.bin``: uint64, a hash of each document's text (``stlm_kd.data.overlap.text_hash``);
- ``spans.bin``: int64, the begin and the end of each span that is predicted, if not all is, as of chats;
- ``manifest.json``: the expected contents of these files, and their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stlm_kd.artifacts.hashing import first_change
from stlm_kd.data.text.store_files import broken, mapped, read_manifest
from stlm_kd.data.text.store_writer import DOCUMENT_FILES, SPANS, shard_name
from stlm_kd.notes import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 4
"""Increased when the same text and tokenizer would give different files. 4: ids in several files."""

Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The expected contents of a store's files: ``dtype`` of the ids, and ``shards``, their number in each.

    ``ends_inside`` is the number of start and end tokens within documents, because the text contains them;
    ``spans`` that of spans to be predicted, None if all is; ``files`` the SHA-256 of each file.
    """

    format_version: int
    dtype: str
    vocab_size: int
    eos_id: int
    documents: int
    tokens: int
    bytes: int
    ends_inside: int
    spans: int | None
    shards: Sequence[int]
    files: Mapping[str, str]


class ShardedIds:
    """The ids of several files, read as one array: its length, slices, and the ids at any places."""

    def __init__(self, shards: Sequence[npt.NDArray[Any]]) -> None:
        self._shards = shards
        self._begins = np.cumsum([0, *map(len, shards)])
        self.dtype = shards[0].dtype

    def __len__(self) -> int:
        return int(self._begins[-1])

    def __getitem__(self, key: slice | int) -> Any:
        """One id, or those of a slice with step 1: a view if one file holds them."""
        if not isinstance(key, slice):
            return self.take(np.array([range(len(self))[key]]))[0]
        begin, end, step = key.indices(len(self))
        assert step == 1
        first = int(np.searchsorted(self._begins, begin, side="right")) - 1
        found = [
            shard[max(begin - start, 0) : max(end - start, 0)]
            for start, shard in zip(self._begins[first:].tolist(), self._shards[first:], strict=False)
            if start < end
        ]
        return found[0] if len(found) == 1 else np.concatenate([*found, np.empty(0, self.dtype)])

    def take(self, places: Integers, mode: str = "raise") -> npt.NDArray[Any]:
        """The ids at these places, (N,); with ``mode="clip"`` the nearest one where there is none."""
        if mode == "clip":
            places = np.clip(places, 0, len(self) - 1)
        shard_of = np.searchsorted(self._begins, places, side="right") - 1
        ids = np.empty(len(places), self.dtype)
        for index in np.unique(shard_of).tolist():
            own = shard_of == index
            ids[own] = self._shards[index][places[own] - self._begins[index]]
        return ids


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Documents as ids, memory-mapped read-only.

    ``tokens``, (tokens,), are the ids of all documents one after the other; ``offsets``, (documents + 1,),
    the begin of each document, and the end of the last; ``document_bytes`` the UTF-8 bytes of each document's
    text, and ``document_hashes`` its hash, (documents,) each. ``vocab_size`` is above every id; ``eos_id``
    (eos or sep) ends every document; ``ends_inside`` as in ``Manifest``. ``identity`` is the manifest's hash.
    ``spans``, (spans, 2), are the begins and ends of what is predicted, in order; None if all is.
    """

    folder: Path
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | ShardedIds
    offsets: npt.NDArray[np.int64]
    document_bytes: npt.NDArray[np.int64]
    document_hashes: npt.NDArray[np.uint64]
    vocab_size: int
    eos_id: int
    ends_inside: int
    identity: str = ""
    spans: npt.NDArray[np.int64] | None = None

    @property
    def start_id(self) -> int:
        """The id that begins every document."""
        return int(self.tokens[0])

    @property
    def num_documents(self) -> int:
        """Number of documents in the store."""
        return len(self.document_bytes)

    @property
    def num_tokens(self) -> int:
        """Number of ids in the store, start and end tokens included."""
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Number of UTF-8 bytes of the text."""
        return int(self.document_bytes.sum())

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        """The store in a folder; DataError if there is none, of another version, or with changed files."""
        manifest, identity = read_manifest(folder, Manifest, FORMAT_VERSION)
        shards = [
            mapped(folder / shard_name(number), manifest.dtype, length)
            for number, length in enumerate(manifest.shards)
        ]
        offsets, document_bytes, hashes = (
            mapped(folder / name, dtype, manifest.documents + (name == "offsets.bin"))
            for name, dtype in DOCUMENT_FILES.items()
        )
        if change := first_change(folder, manifest.files):
            raise broken(folder, f"{change} since the text was tokenised")
        tokens = shards[0] if len(shards) == 1 else ShardedIds(shards)
        sizes = (manifest.vocab_size, manifest.eos_id, manifest.ends_inside)
        spans = None
        if manifest.spans is not None:
            spans = mapped(folder / SPANS, "<i8", 2 * manifest.spans).reshape(-1, 2)
        return cls(folder, tokens, offsets, document_bytes, hashes, *sizes, identity, spans)

    @property
    def num_predicted(self) -> int:
        """Number of ids that are predicted: all but the first of each document, or those in spans."""
        if self.spans is None:
            return self.num_tokens - self.num_documents
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())

    def is_predicted(self, places: Integers) -> npt.NDArray[np.bool_]:
        """Whether the ids at these places are in a span, (N,); of a store with spans."""
        assert self.spans is not None
        span = np.searchsorted(self.spans[:, 0], places, side="right") - 1
        found: npt.NDArray[np.bool_] = (span >= 0) & (places < self.spans[np.maximum(span, 0), 1])
        return found

    def document(self, index: int) -> npt.NDArray[np.integer]:
        """The ids of one document, its start and end included."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def joined(
    stores: Sequence[TokenStore], *, most: int = 10_000_000
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """About the first ``most`` ids of all stores, the same fraction of each; and the documents' boundaries.

    These are the begin of each document, and the end of the last.
    """
    share = min(1.0, most / sum(store.num_tokens for store in stores))
    ids, offsets, before = [], [np.zeros(1, np.int64)], 0
    for store in stores:
        kept = round(share * store.num_tokens)
        ids.append(store.tokens[:kept].astype(np.int64))
        ends = store.offsets[1 : int(np.searchsorted(store.offsets, kept))]
        offsets.append(before + np.append(ends, kept))
        before += kept
    return np.concatenate(ids), np.concatenate(offsets)


def note_ends_inside(store: TokenStore, tokenizer: PreTrainedTokenizerFast, *, place: str) -> None:
    """Note start and end tokens within documents: the text may contain separators."""
    for message in ends_inside(store, tokenizer, place=place):
        note(message)


def ends_inside(store: TokenStore, tokenizer: PreTrainedTokenizerFast, *, place: str) -> list[str]:
    """A message about start and end tokens within documents; empty if there are none."""
    if not store.ends_inside:
        return []
    ids = dict.fromkeys((store.eos_id, store.start_id))
    names = [str(token) for token in tokenizer.convert_ids_to_tokens([*ids])]
    separator = json.dumps(names[0], ensure_ascii=False)
    return [
        f"{place}: {store.ends_inside:,} tokens {' or '.join(names)} found within its "
        f"{store.num_documents:,} documents; if they separate documents, set "
        f"documents: {{separator: {separator}}} (plain text only), or split the texts there"
    ]
