"""Token stores of sources under a tokenizer, built once and addressed by their content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import remove
from stlm_kd.data.batches import PackedRows, require_one_context
from stlm_kd.data.sources.sources import Source, documents, fingerprint, hash_of
from stlm_kd.data.token_store import FORMAT_VERSION, TokenStore, build_store, note_ends_inside, unwritable
from stlm_kd.data.tokenizers import tokenizer_hash
from stlm_kd.errors import DataError
from stlm_kd.lazy import np
from stlm_kd.notes import note

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SHARE_SEED = 0


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """A source's token store, domain and weight."""

    store: TokenStore
    domain: str
    weight: float


def prepare(
    sources: Sequence[Source], tokenizer: PreTrainedTokenizerFast, folder: Path, *, fraction: float = 1.0
) -> tuple[PreparedSource, ...]:
    """The token store of each source, built in ``folder`` unless it is already there.

    A store's folder is named by a hash of the source's content, the tokenizer, the fraction and the format,
    and appears only when it is complete: a text is never tokenised twice or confused with another. A damaged
    store is built again, with a note. Errors as ``documents`` and ``document_ends``.
    """
    tokens_by = tokenizer_hash(tokenizer)
    prepared = []
    for source in sources:
        facts = [fingerprint(source), tokens_by, float(fraction), _SHARE_SEED, FORMAT_VERSION]
        store = _store(source, tokenizer, folder / f"tokens-{hash_of(facts)[:16]}", fraction)
        prepared.append(PreparedSource(store, source.domain, source.weight))
    return tuple(prepared)


def _store(source: Source, tokenizer: PreTrainedTokenizerFast, folder: Path, fraction: float) -> TokenStore:
    place = source.described()
    if (store := _whole(folder)) is None:
        with _store_lock(folder):
            if (store := _whole(folder)) is None:
                for left in (*folder.parent.glob(f".{folder.name}.*"), folder):
                    remove(left)
                return build_store(share(lambda: documents(source), fraction), tokenizer, folder, place=place)
    note_ends_inside(store, tokenizer, place=place)
    return store


def _whole(folder: Path) -> TokenStore | None:
    """The store in a folder; None if there is none, or with a note that it is damaged."""
    if not os.path.lexists(folder):
        return None
    try:
        return TokenStore.open(folder)
    except DataError as error:
        note(f"{str(error).partition('; ')[0]}; the text is tokenised again")
        return None


def _store_lock(folder: Path) -> AbstractContextManager[object]:
    """Hold the store's lock: no other process builds it, so unfinished folders come from killed processes."""
    locks = folder.parent / ".locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with doing(f"waiting for another command to tokenise {folder}", pace="waits"):
            return FileLock(locks / folder.name).acquire()
    except OSError as error:
        raise unwritable(folder, error) from error


def texts(sources: Sequence[Source], *, fraction: float = 1.0) -> Iterator[str]:
    """The documents of all sources in order; the same fraction of each as in ``prepare``."""
    for source in sources:
        yield from share(partial(documents, source), fraction)


def share(read: Callable[[], Iterator[str]], fraction: float) -> Iterator[str]:
    """A random fraction of the documents that ``read`` streams, measured in UTF-8 bytes, in their order.

    The documents are drawn in a fixed random order until the fraction is reached; the last one is cut after a
    word if it would exceed it. So a smaller fraction is a subset of a larger one. The text is read twice:
    for the lengths, then for the documents.
    """
    assert 0 < fraction <= 1
    if fraction == 1:
        yield from read()
        return
    lengths = np.array([len(text.encode()) for text in read()], np.int64)
    kept = _kept_bytes(lengths, fraction)
    for text, length, keep in zip(read(), lengths.tolist(), kept.tolist(), strict=True):
        if keep == length:
            yield text
        elif keep and (cut := _first_words(text, keep)):
            yield cut


def _kept_bytes(lengths: np.ndarray[tuple[int], np.dtype[np.int64]], fraction: float) -> np.ndarray:
    order = np.random.default_rng(_SHARE_SEED).permutation(len(lengths))
    budget = round(fraction * int(lengths.sum()))
    before = np.cumsum(lengths[order]) - lengths[order]
    kept = np.empty_like(lengths)
    kept[order] = np.clip(budget - before, 0, lengths[order])
    return kept


def _first_words(text: str, num_bytes: int) -> str:
    """As many whole words as fit into ``num_bytes``."""
    start = text.encode()[:num_bytes].decode(errors="ignore")
    if start[-1:].isspace() or text[len(start) : len(start) + 1].isspace():
        return start.rstrip()
    words = start.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 else ""


def pack_sources(
    prepared: Sequence[PreparedSource], context: int, *, wrapped: bool = False
) -> tuple[PackedRows, ...]:
    """Each source's documents packed into rows of ``context`` positions; DataError if they fill none."""
    parts = tuple(
        PackedRows(p.store, context, domain=p.domain, weight=p.weight, wrapped=wrapped) for p in prepared
    )
    require_one_context(parts)
    return parts
