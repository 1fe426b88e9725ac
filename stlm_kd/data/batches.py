"""Rows of packed documents as batches, and which rows make which optimizer step.

All is a function of the step's number and the seed, so a resumed run reads the same data without saved state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from stlm_kd.data.batch import IGNORED, Batch, FlatRows, Integers, batches_with_sources
from stlm_kd.data.dealing import dealt, in_pairs, sources
from stlm_kd.data.epochs import EpochOrder
from stlm_kd.data.masking import Masking, chosen_variants, variant_generators
from stlm_kd.data.text.row_index import RowIndex
from stlm_kd.data.token_store import TokenStore
from stlm_kd.errors import DataError

_MASKS, _EVALUATION_MASKS = 2, 3  # after those of epochs: purpose of a random generator, part of its seed


class PackedRows:
    """A token store cut into chunks of at most ``context`` positions and packed into rows of ``context``.

    A document longer than a row continues in another row. For causal models, the label of a chunk's last
    position is the first token of the next chunk, so no prediction is lost; only the eos at the end of a
    document has no label. For bidirectional masked models, every chunk has a start and an end token
    (``wrapped``; ``context`` is then at least 3, else 2), and labels exist only after masking.
    Where a store has spans, only ids in them are labels. ``document_ids`` separates the chunks of a row.
    ``domain`` and ``weight`` are those of the text's source. ``index`` says which chunks a row holds; without
    one it is made in memory.
    """

    def __init__(
        self,
        store: TokenStore,
        context: int,
        *,
        domain: str = "default",
        weight: float = 1.0,
        wrapped: bool = False,
        index: RowIndex | None = None,
    ) -> None:
        assert context >= 2 + wrapped and weight >= 0
        self.store = store
        self.context = context
        self.domain = domain
        self.weight = weight
        self.wrapped = wrapped
        self._index = RowIndex.of(store, context, wrapped=wrapped) if index is None else index

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._index)

    @property
    def num_tokens(self) -> int:
        """Number of positions that hold a token, over all rows."""
        return self._index.num_tokens

    def chunks_of(self, row: int) -> list[tuple[int, int]]:
        """The (begin in the store, length) of each chunk of a row, in order."""
        first, last = self._index.starts[row : row + 2]
        begins, lengths = self._index.begins[first:last], self._index.lengths[first:last]
        return list(zip(begins.tolist(), lengths.tolist(), strict=True))

    def batch(self, rows: Sequence[int] | Integers) -> Batch:
        """These rows in this order; ``example_ids`` are their numbers."""
        numbers = np.asarray(rows, np.int64)
        return self.arrays(numbers).batch(numbers)

    def arrays(self, rows: Integers) -> FlatRows:
        """The rows; the free space at a row's end is treated as one more chunk, of document 0."""
        begins, lengths, labels_after, numbers = self._segments(rows)
        ends = np.cumsum(lengths)
        position_ids = np.arange(len(rows) * self.context) - np.repeat(ends - lengths, lengths)
        places = position_ids + np.repeat(begins, lengths)
        # Only free space is clipped: it may extend beyond the store.
        input_ids = self.store.tokens.take(places, mode="clip").astype(np.int64)
        filled = lengths > 0
        if self.wrapped:
            input_ids[(ends - lengths)[filled]] = self.store.start_id
            input_ids[(ends - 1)[filled]] = self.store.eos_id
            labels = np.full_like(input_ids, IGNORED)
        else:
            labels = np.empty_like(input_ids)
            labels[:-1] = input_ids[1:]
            labels[ends[filled] - 1] = labels_after[filled]
            if self.store.spans is not None:
                labels[~self.store.is_predicted(places + 1)] = IGNORED
        document_ids = np.repeat(numbers, lengths)
        arrays = FlatRows(self.context, input_ids, labels, document_ids, position_ids)
        if not numbers[filled].all():
            arrays.clear(document_ids == 0, pad_id=self.store.eos_id)
        return arrays

    def _segments(self, rows: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Chunks and free spaces in order: begin in the store, length, last label, number in the row or 0."""
        first = self._index.starts[rows]
        counts = self._index.starts[rows + 1] - first
        ends = np.cumsum(counts + 1)  # in segments: each row's chunks and its free space
        number = np.arange(1, ends[-1] + 1) - np.repeat(ends - counts - 1, counts + 1)
        is_chunk = np.ones(len(number), np.bool_)
        is_chunk[ends - 1] = False
        chunks = (number - 1 + np.repeat(first, counts + 1))[is_chunk]
        begins, lengths, labels_after = np.zeros((3, len(number)), np.int64)
        begins[is_chunk] = self._index.begins[chunks]
        lengths[is_chunk] = self._index.lengths[chunks]
        if self._index.labels_after is not None:
            labels_after[is_chunk] = self._index.labels_after[chunks]
        lengths[ends - 1] = self.context - np.add.reduceat(lengths, ends - counts - 1)
        return begins, lengths, labels_after, number * is_chunk


def require_one_context(parts: Sequence[PackedRows]) -> None:
    """Refuse text with fewer tokens than one row has positions (DataError)."""
    found = sum(part.num_tokens for part in parts)
    context = parts[0].context
    if found < context:
        raise DataError(
            f"the text has only {found} tokens, but one row of data.context has {context}; "
            "give more text or a shorter context"
        )


class _Corpus:
    """Rows of several parts, numbered consecutively."""

    def __init__(self, parts: Sequence[PackedRows]) -> None:
        assert parts and len({part.context for part in parts}) == 1
        require_one_context(parts)
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def arrays(self, rows: Integers) -> FlatRows:
        """These rows in this order."""
        part_of = np.searchsorted(self.starts, rows, side="right") - 1
        present: list[int] = np.unique(part_of).tolist()
        if len(present) == 1:
            return self.parts[present[0]].arrays(rows - self.starts[present[0]])
        arrays = self._padding(len(rows))
        for index in present:
            places = np.flatnonzero(part_of == index)
            arrays.put(places, self.parts[index].arrays(rows[places] - self.starts[index]))
        return arrays

    def batch(
        self, rows: Integers, masking: Masking | None = None, generators: Iterable[np.random.Generator] = ()
    ) -> Batch:
        """These rows as tensors, each masked with its own generator; one row of padding if there are none."""
        arrays = self.arrays(rows)
        return self.tensors(rows, arrays if masking is None else masking.apart(arrays, generators))

    def tensors(self, rows: Integers, arrays: FlatRows) -> Batch:
        """The arrays of these rows as tensors; one row of padding if there are none."""
        return arrays.batch(rows) if len(rows) else self._padding(1).batch(np.array([-1]))

    def _padding(self, rows: int) -> FlatRows:
        return FlatRows.padding(rows, self.parts[0].context, self.parts[0].store.eos_id)


def _dealt(num_rows: int, size: int, rank: int, world_size: int) -> list[Integers]:
    """Every ``world_size``-th row, ``size`` at a time; the same number of micro-batches on every rank."""
    most = -(-num_rows // world_size)
    own = np.arange(rank, num_rows, world_size)
    return [own[begin : begin + size] for begin in range(0, most, size)]


class BatchStream:
    """The micro-batches of every optimizer step, reshuffled in each epoch.

    In an epoch, a row of a part with weight w occurs floor(w) times, and once more if it is in a random
    fraction frac(w) of the part's rows, redrawn in each epoch: with weight 1 exactly once. The last step of
    an epoch holds the remaining rows, so no row is lost or repeated. ``example_ids`` number the rows of all
    parts consecutively; -1 is a row of padding, for a rank that has no row when other ranks have one.

    With a masking, the masks of an optimizer step are a function of the seed, the step's number and its rows.
    They are drawn over all its rows before these are split over ranks and micro-batches, so any split trains
    on the same masks. With ``variants`` each row has that number of masks, which do not depend on the seed;
    the seed selects one of them for each row and epoch.

    With ``pairs`` rows are sources of each other in interventions. The pairs depend on the step alone; both
    rows of a pair are in one micro-batch, unless micro-batches hold one row.

    ``effective_batch`` is the rows of a step over all ranks and micro-batches, ``micro_batch`` the most rows
    of one forward on one rank. DataError: fewer tokens than one row has positions, or all weights are 0.
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
        masking: Masking | None = None,
        variants: int | None = None,
        pairs: bool = False,
    ) -> None:
        assert effective_batch >= 1 and micro_batch >= 1 and seed >= 0 and 0 <= rank < world_size
        self.corpus = _Corpus(parts)
        self.effective_batch = effective_batch
        self.micro_batch = micro_batch
        self.seed = seed
        self._rank, self._world_size = rank, world_size
        self.masking, self._variants = masking, variants
        self._pairs = pairs
        self._order = self._order_of(0)
        self.rows_per_epoch = len(self._order)
        if not self.rows_per_epoch:
            raise DataError("no text to train on: the weight of every source is 0; give one a higher weight")
        self.steps_per_epoch = -(-self.rows_per_epoch // effective_batch)

    def step(self, index: int) -> list[Batch]:
        """The rank's micro-batches of an optimizer step, counted from 0 over all epochs."""
        epoch, step = divmod(index, self.steps_per_epoch)
        if self._order.epoch != epoch:
            self._order = self._order_of(epoch)
        begin = step * self.effective_batch
        rows = self._order.rows(begin, begin + self.effective_batch)
        batch = self._reader(index, epoch, rows)
        if not self._pairs:
            return [batch(own) for own in _dealt(len(rows), self.micro_batch, self._rank, self._world_size)]
        order = in_pairs(rows)
        groups = dealt(
            np.ones(len(rows), np.int64),
            rank=self._rank,
            world_size=self._world_size,
            most=self.micro_batch,
            cost=1,
            pairs=True,
        )
        return batches_with_sources(lambda own: batch(order[own]), groups, sources(rows[order]))

    def _reader(self, index: int, epoch: int, rows: Integers) -> Callable[[Integers], Batch]:
        """A function from row indices within the step to a batch of these rows, with the step's masks."""
        masking = self.masking
        if masking is None:
            return lambda own: self.corpus.batch(rows[own])
        if self._variants is not None:
            total = int(self.corpus.starts[-1])
            chosen = chosen_variants(rows, self.seed, epoch, total=total, variants=self._variants)
            return lambda own: self.corpus.batch(
                rows[own], masking, variant_generators(rows[own], chosen[own])
            )
        generator = np.random.default_rng([self.seed, index, _MASKS])
        arrays = masking.together(self.corpus.arrays(rows), generator)
        return lambda own: self.corpus.tensors(rows[own], arrays.select(own))

    def _order_of(self, epoch: int) -> EpochOrder:
        parts = self.corpus.parts
        weights = [part.weight for part in parts]
        return EpochOrder([len(part) for part in parts], weights, seed=self.seed, epoch=epoch)


def numbered_batch(
    parts: Sequence[PackedRows], rows: Sequence[int], variants: Sequence[int], masking: Masking | None
) -> Batch:
    """Rows by their numbers over all parts, as in ``BatchStream``, each with a variant of its masks."""
    numbers = np.asarray(rows, np.int64)
    return _Corpus(parts).batch(numbers, masking, variant_generators(numbers, np.asarray(variants, np.int64)))


def evaluation_batches(
    parts: Sequence[PackedRows],
    *,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
    masking: Masking | None = None,
    seed: int = 0,
    most_rows: int | None = None,
) -> Iterator[Batch]:
    """Every row once, in order, regardless of weights; the same number of batches on every rank.

    With ``most_rows`` at most that many, spread evenly over all rows. With a masking, each row is masked
    independently, by the seed and the row's number alone. Raises DataError, before the first batch, if there
    are fewer tokens than one row has positions.
    """
    corpus = _Corpus(parts)
    total = int(corpus.starts[-1])
    kept = total if most_rows is None else min(total, most_rows)
    chosen = np.arange(kept) * total // max(kept, 1)
    stride = micro_batch * world_size

    def batch(rows: Integers) -> Batch:
        seeds = ([seed, row, _EVALUATION_MASKS] for row in rows.tolist())
        return corpus.batch(rows, masking, map(np.random.default_rng, seeds))

    return (
        batch(step[own])
        for step in (chosen[begin : begin + stride] for begin in range(0, kept, stride))
        for own in _dealt(len(step), micro_batch, rank, world_size)
    )
