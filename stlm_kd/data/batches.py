"""Rows of packed documents as batches, and which rows make which optimizer step.

Everything is a function of the step's number and the seed, so a resumed run needs no state to go on with the
same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
        self._begins, self._lengths, self._last = _chunks(store.offsets, context)
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
        arrays = _Arrays(len(rows), self.context)
        numbers = np.asarray(rows, np.int64)
        self.write(numbers, arrays, np.arange(len(numbers)), first_id=0)
        return arrays.batch()

    def write(self, rows: Integers, arrays: _Arrays, places: Integers, *, first_id: int) -> None:
        """Write rows into a batch's rows ``places``; their example ids count from ``first_id``."""
        starts = self._rows.starts
        counts = starts[rows + 1] - starts[rows]
        chunks = self._rows.chunks[_ranges(starts[rows], counts)]
        lengths = self._lengths[chunks]
        first = np.cumsum(counts) - counts  # each row's first chunk
        before = np.cumsum(lengths) - lengths  # positions before each chunk
        in_row = before - np.repeat(before[first], counts)
        begins = np.repeat(places, counts) * self.context + in_row
        source = _ranges(self._begins[chunks], lengths)
        target = _ranges(begins, lengths)
        tokens = self.store.tokens
        arrays.input_ids[target] = tokens[source]
        source += 1
        np.minimum(source, len(tokens) - 1, out=source)
        arrays.labels[target] = tokens[source]
        last = self._last[chunks]
        arrays.labels[(begins + lengths - 1)[last]] = IGNORED
        number_in_row = np.arange(1, len(chunks) + 1) - np.repeat(first, counts)
        arrays.document_ids[target] = np.repeat(number_in_row, lengths)
        arrays.position_ids[target] = target - np.repeat(begins, lengths)
        arrays.attention_mask[target] = True
        arrays.example_ids[places] = rows + first_id


class _Arrays:
    """The flat arrays of a batch under construction: all padding, to be written over."""

    def __init__(self, rows: int, context: int, *, pad_id: int = 0) -> None:
        self.shape = (rows, context)
        size = rows * context
        self.input_ids = np.full(size, pad_id, np.int64)
        self.labels = np.full(size, IGNORED, np.int64)
        self.document_ids = np.zeros(size, np.int64)
        self.position_ids = np.zeros(size, np.int64)
        self.attention_mask = np.zeros(size, np.bool_)
        self.example_ids = np.full(rows, -1, np.int64)

    def batch(self) -> Batch:
        return Batch(
            input_ids=torch.from_numpy(self.input_ids).view(self.shape),
            attention_mask=torch.from_numpy(self.attention_mask).view(self.shape),
            labels=torch.from_numpy(self.labels).view(self.shape),
            document_ids=torch.from_numpy(self.document_ids).view(self.shape),
            position_ids=torch.from_numpy(self.position_ids).view(self.shape),
            example_ids=torch.from_numpy(self.example_ids),
        )


def _chunks(offsets: Integers, context: int) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Where each chunk begins in the store, its length, and whether its document ends with it."""
    lengths = np.diff(offsets)
    counts = -(-lengths // context)
    first = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(first, counts)
    begins = np.repeat(offsets[:-1], counts) + index * context
    ends = np.repeat(offsets[1:], counts)
    return begins, np.minimum(context, ends - begins), begins + context >= ends


def _ranges(begins: Integers, lengths: Integers) -> Integers:
    """``begins[i], begins[i] + 1, …`` for ``lengths[i]`` numbers, one i after the other."""
    before = np.cumsum(lengths) - lengths
    ranges: Integers = np.arange(lengths.sum()) + np.repeat(begins - before, lengths)
    return ranges


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
        arrays = _Arrays(max(1, len(rows)), self.parts[0].context, pad_id=self.parts[0].store.eos_id)
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        for index in np.unique(part_of).tolist():
            places = np.flatnonzero(part_of == index)
            first_id = int(self.starts[index])
            self.parts[index].write(rows[places] - first_id, arrays, places, first_id=first_id)
        return arrays.batch()

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
