"""Chunks and rows as arrays: the formula for what ``data.row_index`` makes without holding them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Integers: TypeAlias = "npt.NDArray[np.int64]"


@dataclass(frozen=True, slots=True)
class Rows:
    """Chunks by row: row r holds ``chunks[starts[r]:starts[r + 1]]``, in order; each chunk exactly once."""

    chunks: Integers
    starts: Integers

    def __len__(self) -> int:
        return len(self.starts) - 1


def cut(
    offsets: Integers, context: int, *, overlap: int = 0
) -> tuple[Integers, Integers, npt.NDArray[np.bool_]]:
    """Chunks of at most ``context`` positions: begin, length, whether the document continues after it.

    Each chunk begins ``overlap`` positions before the end of the previous one. Documents must be at least as
    long as the overlap.
    """
    step = context - overlap
    counts = np.maximum(-(-(np.diff(offsets) - overlap) // step), 1)
    first = np.cumsum(counts) - counts
    index = np.arange(counts.sum()) - np.repeat(first, counts)
    begins = np.repeat(offsets[:-1], counts) + index * step
    document_ends = np.repeat(offsets[1:], counts)
    ends = np.minimum(begins + context, document_ends)
    return begins, ends - begins, ends < document_ends


def pack(lengths: npt.NDArray[np.integer], context: int) -> Rows:
    """Pack chunks of these lengths (1 to ``context``) into rows of at most ``context`` positions.

    Longest first, each chunk goes into the fullest row with room for it, or else into a new row
    (best-fit-decreasing: Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing
    Algorithms", 1974): at most 11/9 of the minimum number of rows, plus 4; on real text rows are nearly full.
    Chunks of equal length and rows of equal free space are interchangeable, so they are placed together and
    the cost is that of sorting.
    """
    assert context >= 1
    assert not len(lengths) or (lengths.min() >= 1 and lengths.max() <= context)
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    row_of = _assign(lengths[order].astype(np.int64), context)
    by_row = np.argsort(row_of, kind="stable")
    return Rows(order[by_row], np.append(0, np.cumsum(np.bincount(row_of))))


def _assign(lengths: Integers, context: int) -> Integers:
    """The row of each chunk, for lengths in decreasing order."""
    row_of = np.empty(len(lengths), np.int64)
    open_rows: list[list[Integers]] = [[] for _ in range(context + 1)]  # by free space
    num_rows = position = 0
    distinct, counts = np.unique(lengths, return_counts=True)
    for length, count in zip(distinct[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = position + count
        for space in range(length, context):
            if position == end:
                break
            if open_rows[space]:
                rows = np.concatenate(open_rows[space])
                open_rows[space] = []
                position += _fill(rows, space, length, row_of[position:end], open_rows)
        if position < end:
            needed = -(-(end - position) // (context // length))
            rows = np.arange(num_rows, num_rows + needed)
            num_rows += needed
            position += _fill(rows, context, length, row_of[position:end], open_rows)
        assert position == end
    return row_of


def _fill(rows: Integers, space: int, length: int, row_of: Integers, open_rows: list[list[Integers]]) -> int:
    """Put chunks of one length into rows of one free space, filling each row before the next.

    Writes into the beginning of ``row_of``, which has one entry for each unplaced chunk, files the rows under
    their new free space, and returns the number of chunks placed.
    """
    each = space // length
    full, rest = divmod(len(row_of), each)
    if full >= len(rows):
        full, rest = len(rows), 0
    row_of[: full * each] = np.repeat(rows[:full], each)
    _put(open_rows, space - each * length, rows[:full])
    if rest:
        row_of[full * each : full * each + rest] = rows[full]
        _put(open_rows, space - rest * length, rows[full : full + 1])
    _put(open_rows, space, rows[full + bool(rest) :])
    return full * each + rest


def _put(open_rows: list[list[Integers]], space: int, rows: Integers) -> None:
    if space and len(rows):
        open_rows[space].append(rows)
