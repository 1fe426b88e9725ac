"""Rows of packed documents as batches, and which rows make which optimizer step.

Everything is a function of the step's number and the seed, so a resumed run needs no state to go on with the
same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.packing import pack
from stlm_kd.data.tokens import TokenStore
from stlm_kd.errors import DataError

Integers = npt.NDArray[np.int64]
_ORDER, _SHARE = 0, 1  # what a random generator is for


class PackedRows:
    """A token store cut into chunks of at most ``context`` positions and packed into rows of ``context``.

    A document longer than a row goes on in another: the last position of a chunk has the first token of the
    next as its label, so no prediction is lost; only the eos that ends a document predicts nothing. Whatever
    shares a row is told apart by ``document_ids``.

    Attributes:
        domain, weight: Those of the text's source.
        useful_fraction: Positions that hold a token, of all positions.
    """

    def __init__(
        self, store: TokenStore, context: int, *, domain: str = "default", weight: float = 1.0
    ) -> None:
        assert context >= 2 and weight >= 0
        self.store = store
        self.context = context
        self.domain = domain
        self.weight = weight
        self._begins, self._lengths, self._labels_after = _chunks(store, context)
        self._rows = pack(self._lengths, context)
        self.useful_fraction = self._rows.useful_fraction(self._lengths, context)

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    @property
    def num_tokens(self) -> int:
        """Positions that hold a token, over all rows."""
        return self.store.num_tokens

    def batch(self, rows: Sequence[int] | Integers) -> Batch:
        """These rows in this order; ``example_ids`` are their numbers."""
        numbers = np.asarray(rows, np.int64)
        return self.arrays(numbers).batch(numbers)

    def arrays(self, rows: Integers) -> _Arrays:
        """The rows, where the free space at a row's end counts as one more chunk, of document 0."""
        begins, lengths, labels_after, numbers = self._segments(rows)
        ends = np.cumsum(lengths)
        position_ids = np.arange(len(rows) * self.context) - np.repeat(ends - lengths, lengths)
        places = position_ids + np.repeat(begins, lengths)
        # Clipped for the free space alone, which may be longer than the store.
        input_ids = self.store.tokens.take(places, mode="clip").astype(np.int64)
        labels = np.empty_like(input_ids)
        labels[:-1] = input_ids[1:]
        filled = lengths > 0
        labels[ends[filled] - 1] = labels_after[filled]
        document_ids = np.repeat(numbers, lengths)
        arrays = _Arrays(self.context, input_ids, labels, document_ids, position_ids)
        if not numbers[filled].all():
            arrays.clear(document_ids == 0, pad_id=self.store.eos_id)
        return arrays

    def _segments(self, rows: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Chunks and free spaces in order: begin in the store, length, last label, number in the row or 0."""
        first = self._rows.starts[rows]
        counts = self._rows.starts[rows + 1] - first
        ends = np.cumsum(counts + 1)  # in segments: each row's chunks and its free space
        number = np.arange(1, ends[-1] + 1) - np.repeat(ends - counts - 1, counts + 1)
        is_chunk = np.ones(len(number), np.bool_)
        is_chunk[ends - 1] = False
        chunks = self._rows.chunks[(number - 1 + np.repeat(first, counts + 1))[is_chunk]]
        begins, lengths, labels_after = np.zeros((3, len(number)), np.int64)
        begins[is_chunk] = self._begins[chunks]
        lengths[is_chunk] = self._lengths[chunks]
        labels_after[is_chunk] = self._labels_after[chunks]
        lengths[ends - 1] = self.context - np.add.reduceat(lengths, ends - counts - 1)
        return begins, lengths, labels_after, number * is_chunk


@dataclass(frozen=True, slots=True)
class _Arrays:
    """The flat arrays of rows of ``context`` positions; as in ``Batch``."""

    context: int
    input_ids: Integers
    labels: Integers
    document_ids: Integers
    position_ids: Integers

    @classmethod
    def padding(cls, rows: int, context: int, pad_id: int) -> _Arrays:
        """Rows without a token."""
        arrays = cls(context, *np.zeros((4, rows * context), np.int64))
        arrays.clear(slice(None), pad_id=pad_id)
        return arrays

    def clear(self, places: npt.NDArray[np.bool_] | slice, *, pad_id: int) -> None:
        """Make these positions padding."""
        self.input_ids[places] = pad_id
        self.labels[places] = IGNORED
        self.document_ids[places] = 0
        self.position_ids[places] = 0

    def put(self, rows: Integers, other: _Arrays) -> None:
        """Write another's rows into these rows, in order."""
        for mine, theirs in (
            (self.input_ids, other.input_ids),
            (self.labels, other.labels),
            (self.document_ids, other.document_ids),
            (self.position_ids, other.position_ids),
        ):
            mine.reshape(-1, self.context)[rows] = theirs.reshape(-1, self.context)

    def batch(self, example_ids: Integers) -> Batch:
        """As tensors, which share the memory."""
        shape = (len(example_ids), self.context)
        document_ids = torch.from_numpy(self.document_ids).view(shape)
        return Batch(
            input_ids=torch.from_numpy(self.input_ids).view(shape),
            attention_mask=document_ids > 0,
            labels=torch.from_numpy(self.labels).view(shape),
            document_ids=document_ids,
            position_ids=torch.from_numpy(self.position_ids).view(shape),
            example_ids=torch.from_numpy(example_ids),
        )


def _chunks(store: TokenStore, context: int) -> tuple[Integers, Integers, Integers]:
    """Where each chunk begins in the store, its length, and the label of its last position."""
    lengths = np.diff(store.offsets)
    counts = -(-lengths // context)
    first = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(first, counts)
    begins = np.repeat(store.offsets[:-1], counts) + index * context
    document_ends = np.repeat(store.offsets[1:], counts)
    ends = np.minimum(begins + context, document_ends)
    labels_after = np.full(len(begins), IGNORED)
    goes_on = ends < document_ends
    labels_after[goes_on] = store.tokens[ends[goes_on]]
    return begins, ends - begins, labels_after


def require_one_context(parts: Sequence[PackedRows]) -> None:
    """Refuse text that does not fill one row.

    Raises:
        DataError: The parts have fewer tokens together than one row has positions.
    """
    found = sum(part.num_tokens for part in parts)
    context = parts[0].context
    if found < context:
        raise DataError(
            f"the text has only {found} tokens, but one row of data.context has {context}; "
            "give more text or a shorter context"
        )


class _Corpus:
    """Rows of several parts under one numbering."""

    def __init__(self, parts: Sequence[PackedRows]) -> None:
        assert parts and len({part.context for part in parts}) == 1
        require_one_context(parts)
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def batch(self, rows: Integers) -> Batch:
        """These rows in this order; one row of padding where there are none."""
        context, pad_id = self.parts[0].context, self.parts[0].store.eos_id
        if not len(rows):
            return _Arrays.padding(1, context, pad_id).batch(np.array([-1]))
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        present: list[int] = np.unique(part_of).tolist()
        if len(present) == 1:
            return self.parts[present[0]].arrays(rows - self.starts[present[0]]).batch(rows)
        arrays = _Arrays.padding(len(rows), context, pad_id)
        for index in present:
            places = np.flatnonzero(part_of == index)
            arrays.put(places, self.parts[index].arrays(rows[places] - self.starts[index]))
        return arrays.batch(rows)

    def micro_batches(self, rows: Integers, size: int, rank: int, world_size: int) -> list[Batch]:
        """The rank's every ``world_size``-th row, ``size`` at a time; as many batches on every rank."""
        most = -(-len(rows) // world_size)
        own = rows[rank::world_size]
        return [self.batch(own[begin : begin + size]) for begin in range(0, most, size)]


class BatchStream:
    """The micro-batches of every optimizer step, in an order that is drawn anew in each epoch.

    In an epoch, a row of a part with weight w comes floor(w) times, and once more if it is in a random share
    frac(w) of the part's rows, which is drawn anew each time: with weight 1 exactly once. The last step of an
    epoch has what is left, so no row is lost or repeated. ``example_ids`` number the rows of all parts, one
    part after the other; -1 is a row of padding, which a rank gets that has no row when others have one.

    Args:
        parts: At least one, of one context.
        effective_batch: Rows of an optimizer step, over all ranks and micro-batches.
        micro_batch: Most rows of one forward on one rank.
        seed: Of the order, 0 or more.
        rank: This process, of ``world_size``.
        world_size: Processes that share the rows of a step.

    Raises:
        DataError: Fewer tokens than one row has positions, or no row because all weights are 0.
    """

    def __init__(
        self,
        parts: Sequence[PackedRows],
        *,
        effective_batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert effective_batch >= 1 and micro_batch >= 1 and seed >= 0 and 0 <= rank < world_size
        self._corpus = _Corpus(parts)
        self._effective_batch = effective_batch
        self._micro_batch = micro_batch
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._order: tuple[int, Integers] = (0, self._shuffled(0))
        self.rows_per_epoch = len(self._order[1])
        if not self.rows_per_epoch:
            raise DataError("no text to train on: the weight of every source is 0; give one a higher weight")
        self.steps_per_epoch = -(-self.rows_per_epoch // effective_batch)

    def step(self, index: int) -> list[Batch]:
        """The rank's micro-batches of an optimizer step, counted from 0 over all epochs."""
        epoch, step = divmod(index, self.steps_per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, self._shuffled(epoch))
        begin = step * self._effective_batch
        rows = self._order[1][begin : begin + self._effective_batch]
        return self._corpus.micro_batches(rows, self._micro_batch, self._rank, self._world_size)

    def _shuffled(self, epoch: int) -> Integers:
        rows = np.concatenate([self._drawn(index, epoch) for index in range(len(self._corpus.parts))])
        return np.random.default_rng([self._seed, epoch, _ORDER]).permutation(rows)

    def _drawn(self, index: int, epoch: int) -> Integers:
        """The rows of one part that come in an epoch."""
        part = self._corpus.parts[index]
        rows = np.arange(len(part)) + self._corpus.starts[index]
        whole = int(part.weight)
        share = round((part.weight - whole) * len(part))
        generator = np.random.default_rng([self._seed, epoch, _SHARE, index])
        return np.concatenate([np.tile(rows, whole), generator.choice(rows, share, replace=False)])


def evaluation_batches(
    parts: Sequence[PackedRows], *, micro_batch: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Every row once, in order, whatever the weights; as many batches on every rank.

    Raises:
        DataError: Fewer tokens than one row has positions, at once.
    """
    corpus = _Corpus(parts)
    rows = np.arange(corpus.starts[-1])
    stride = micro_batch * world_size
    return (
        batch
        for begin in range(0, len(rows), stride)
        for batch in corpus.micro_batches(rows[begin : begin + stride], micro_batch, rank, world_size)
    )
