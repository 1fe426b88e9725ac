"""Token stores of sources under a tokenizer, built once and addressed by their content."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from filelock import FileLock

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import clear_unfinished_for, remove
from stlm_kd.artifacts.stage_store import LOCKS, PARTIAL
from stlm_kd.data.batches import PackedRows, require_one_context
from stlm_kd.data.chats import plain_text, rendered
from stlm_kd.data.sources.limits import first_words
from stlm_kd.data.sources.sources import Source, documents, fingerprint, hash_of
from stlm_kd.data.text.marked import Text
from stlm_kd.data.text.row_index import FORMAT_VERSION as INDEX_VERSION
from stlm_kd.data.text.row_index import RowIndex
from stlm_kd.data.text.store_builder import build_store, unwritable
from stlm_kd.data.token_store import FORMAT_VERSION, TokenStore, note_ends_inside
from stlm_kd.data.tokenizers import tokenizer_hash
from stlm_kd.errors import DataError
from stlm_kd.lazy import np
from stlm_kd.notes import note

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerFast

T = TypeVar("T")
Numbers: TypeAlias = "npt.NDArray[np.unsignedinteger[Any]]"

_SHARE_SEED = 0
_BLOCK = 1 << 16


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
    store is built again, with a note. Of a source with a limit in tokens, the fraction is the first tokens of
    that limit, so no more is read. Errors as ``documents`` and ``document_ends``; DataError if a text changes
    while it is read.
    """
    tokens_by = tokenizer_hash(tokenizer)
    prepared = []
    for source in sources:
        content = fingerprint(source)
        facts = [content, tokens_by, float(fraction), _SHARE_SEED, FORMAT_VERSION]
        if source.chat is not None:  # templates name special tokens
            facts.append(sorted((role, str(token)) for role, token in tokenizer.special_tokens_map.items()))
        store = _store(source, content, tokenizer, folder / f"tokens-{hash_of(facts)[:16]}", fraction)
        prepared.append(PreparedSource(store, source.domain, source.weight))
    return tuple(prepared)


def _store(
    source: Source, content: str, tokenizer: PreTrainedTokenizerFast, folder: Path, fraction: float
) -> TokenStore:
    place, most = source.described(), source.most_tokens(fraction)

    def require_unchanged() -> None:
        if fingerprint(source) != content:
            raise DataError(f"{place}: changed while it was read; repeat the command")

    def find() -> TokenStore | None:
        return _whole(TokenStore.open, folder, "the text is tokenised again")

    if (store := find()) is None:
        with _store_lock(folder, f"waiting for another command to tokenise {folder}"):
            if (store := find()) is None:
                for left in (*folder.parent.glob(f".{folder.name}.*"), folder):
                    remove(left)
                text = _text(source, tokenizer, fraction if most is None else 1.0)
                size = source.expected_bytes()
                rate = 1.0 if source.subsample is None or source.limit else source.subsample.rate
                store = build_store(
                    text,
                    tokenizer,
                    folder,
                    place=place,
                    marked=source.chat is not None,
                    most_tokens=most,
                    partial=folder.with_name(f"{folder.name}{PARTIAL}"),
                    expected_bytes=None if size is None else round(fraction * rate * size),
                    check=require_unchanged,
                )
    note_ends_inside(store, tokenizer, place=place)
    if source.limit is not None and most is not None and store.num_tokens < most:
        source.limit.note_more_than(store.num_tokens, place)
    return store


def _text(source: Source, tokenizer: PreTrainedTokenizerFast, fraction: float) -> Iterator[Text]:
    """A fraction of the documents of a source; chats as the tokenizer's model reads them."""
    of_chats = source.chat is not None
    found = share(partial(documents, source), fraction, whole=of_chats, place=source.described())
    if source.chat is None:
        return found
    return rendered(found, source.chat.template_text(), tokenizer, place=source.described())


def _row_index(store: TokenStore, context: int, *, wrapped: bool) -> RowIndex:
    """The packed rows of a store, made in its folder unless they are there; damaged ones are made again."""
    facts = [store.identity, context, wrapped, INDEX_VERSION]
    folder = store.folder / f"rows-{hash_of(facts)[:16]}"
    opened = partial(RowIndex.open, store=store, context=context, wrapped=wrapped)

    def find() -> RowIndex | None:
        return _whole(opened, folder, "the rows are packed again")

    if (index := find()) is None:
        with _store_lock(store.folder, f"waiting for another command to pack the rows of {store.folder}"):
            if (index := find()) is None:
                clear_unfinished_for(folder)
                with _written(folder):
                    RowIndex.write(folder, store, context, wrapped=wrapped)
                index = opened(folder)
    return index


def _whole(opened: Callable[[Path], T], folder: Path, again: str) -> T | None:
    """What is in a folder; None if there is nothing, or with a note that it is damaged."""
    if not os.path.lexists(folder):
        return None
    try:
        return opened(folder)
    except DataError as error:
        note(f"{str(error).partition('; ')[0]}; {again}")
        return None


def _store_lock(folder: Path, waiting: str) -> AbstractContextManager[object]:
    """Hold a store's lock: no other process builds in it, so what is unfinished is of killed processes."""
    locks = folder.parent / LOCKS
    with _written(folder):
        locks.mkdir(parents=True, exist_ok=True)
        with doing(waiting, pace="waits"):
            return FileLock(locks / folder.name).acquire()


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Turn an error on writing into one message."""
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error


def texts(sources: Sequence[Source], *, fraction: float = 1.0) -> Iterator[str]:
    """The documents of all sources in order; the same fraction of each as in ``prepare``."""
    for source in sources:
        of_chats = source.chat is not None
        found = share(partial(documents, source), fraction, whole=of_chats, place=source.described())
        yield from found if source.chat is None else map(plain_text, found)


def share(
    read: Callable[[], Iterator[str]], fraction: float, *, whole: bool = False, place: str = "text"
) -> Iterator[str]:
    """A random fraction of the documents that ``read`` streams, measured in UTF-8 bytes, in their order.

    The documents are drawn in a fixed random order until the fraction is reached; the last one is cut after a
    word if it would exceed it. So a smaller fraction is a subset of a larger one. The text is read twice:
    for the lengths, then for the documents, with 8 bytes of memory for each; DataError, which begins with
    ``place``, if it changes meanwhile. ``whole``: that last one is left out.
    """
    assert 0 < fraction <= 1
    if fraction == 1:
        yield from read()
        return
    try:
        lengths = np.fromiter((len(text.encode()) for text in read()), np.uint32)
    except OverflowError as error:
        raise DataError(f"{place}: a document of 4 GiB or more found; split it") from error
    taken, last, num_bytes = _drawn(lengths, fraction)
    numbers = iter(taken.data)
    wanted = next(numbers, None)
    for number, (text, length) in enumerate(zip_longest(read(), lengths.data)):
        if text is None or length is None or len(text.encode()) != length:
            raise DataError(f"{place}: changed while it was read; repeat the command")
        if number == wanted:
            wanted = next(numbers, None)
            yield text
        elif number == last and not whole and (cut := first_words(text, num_bytes)):
            yield cut


def _drawn(lengths: Numbers, fraction: float) -> tuple[Numbers, int | None, int]:
    """The documents that are taken whole, sorted; the one that is cut, if any, and the bytes left for it."""
    number = np.uint32 if len(lengths) < 1 << 32 else np.uint64
    order: Numbers = np.arange(len(lengths), dtype=number)
    np.random.default_rng(_SHARE_SEED).shuffle(order)
    left, taken = round(fraction * int(lengths.sum(dtype=np.int64))), 0
    for begin in range(0, len(order), _BLOCK):
        ends = np.cumsum(lengths[order[begin : begin + _BLOCK]], dtype=np.int64)
        fitting = int(np.searchsorted(ends, left, side="right"))
        taken += fitting
        left -= int(ends[fitting - 1]) if fitting else 0
        if fitting < len(ends):
            break
    last = int(order[taken]) if taken < len(order) else None
    order[:taken].sort()
    return order[:taken], last, left


def pack_sources(
    prepared: Sequence[PreparedSource], context: int, *, wrapped: bool = False
) -> tuple[PackedRows, ...]:
    """Each source's documents packed into rows of ``context`` positions; DataError if they fill none.

    The rows are packed once, into a folder of the store, and read from there.
    """
    parts = tuple(
        PackedRows(
            p.store,
            context,
            domain=p.domain,
            weight=p.weight,
            wrapped=wrapped,
            index=_row_index(p.store, context, wrapped=wrapped),
        )
        for p in prepared
    )
    require_one_context(parts)
    return parts
