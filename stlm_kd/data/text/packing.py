"""Which rows chunks are packed into: best-fit-decreasing, planned from the number of chunks by length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Integers: TypeAlias = "npt.NDArray[np.int64]"


class Rows(NamedTuple):
    """Rows side by side that hold the same number of chunks."""

    first: int
    number: int
    chunks: int


class Run(NamedTuple):
    """Chunks that follow each other in the order of packing, put into rows side by side, ``each`` into one.

    ``chunk`` is the first one's place in that order, ``row`` its row, which held ``before`` chunks.
    """

    chunk: int
    row: int
    each: int
    before: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where chunks go that are ordered by decreasing length: ``runs`` in that order, and all ``rows``."""

    runs: Integers
    rows: tuple[Rows, ...]

    def places(self, chunks: Integers) -> tuple[Integers, Integers]:
        """The row of each chunk, and its place within the row."""
        first, row, each, before = self.runs[np.searchsorted(self.runs[:, 0], chunks, side="right") - 1].T
        rows, places = np.divmod(chunks - first, each)
        return row + rows, before + places


def plan(counts: Integers) -> Plan:
    """Pack chunks, ``counts[length]`` of each length, into rows of at most ``len(counts) - 1`` positions.

    Longest first, each chunk goes into the fullest row with room for it, or else into a new row
    (best-fit-decreasing: Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing
    Algorithms", 1974): at most 11/9 of the minimum number of rows, plus 4; on real text rows are nearly full.
    Chunks of equal length and rows of equal free space are interchangeable, so they are placed together:
    time and memory depend on the number of different lengths, not on that of chunks.

    >>> packed = plan(np.array([0, 1, 2, 1, 1]))
    >>> [places.tolist() for places in packed.places(np.arange(5))]
    [[0, 1, 2, 2, 1], [0, 0, 0, 1, 1]]
    """
    packing = _Packing(len(counts) - 1)
    for length in np.flatnonzero(counts)[::-1].tolist():
        packing.add(length, int(counts[length]))
    return Plan(np.array(packing.runs, np.int64).reshape(-1, 4), packing.rows())


class _Packing:
    def __init__(self, context: int) -> None:
        self.runs: list[Run] = []
        self._by_space: list[list[Rows]] = [[] for _ in range(context + 1)]
        self._num_rows = self._num_chunks = 0

    def rows(self) -> tuple[Rows, ...]:
        return (*sorted(rows for group in self._by_space for rows in group),)

    def add(self, length: int, count: int) -> None:
        """Place chunks of one length, which is at most that of the chunks before."""
        context = len(self._by_space) - 1
        for space in range(length, context):
            if not count:
                return
            if self._by_space[space]:
                found, self._by_space[space] = self._by_space[space], []
                for rows in found:
                    count = self._fill(rows, space, length, count)
        if count:
            new = Rows(self._num_rows, -(-count // (context // length)), 0)
            self._num_rows += new.number
            self._fill(new, context, length, count)

    def _fill(self, rows: Rows, space: int, length: int, count: int) -> int:
        """Put chunks of one length into rows of one free space, filling each row before the next.

        Returns the number of chunks that found no room.
        """
        most = space // length
        for each in (most, count % most):  # full rows, then one with the remaining chunks
            filled = min(rows.number, count // each if each else 0, rows.number if each == most else 1)
            if filled:
                self.runs.append(Run(self._num_chunks, rows.first, each, rows.chunks))
                self._file(space - each * length, Rows(rows.first, filled, rows.chunks + each))
                self._num_chunks += filled * each
                count -= filled * each
                rows = Rows(rows.first + filled, rows.number - filled, rows.chunks)
        if rows.number:
            self._file(space, rows)
        return count

    def _file(self, space: int, rows: Rows) -> None:
        """Keep rows under their free space, in the order in which they came."""
        group = self._by_space[space]
        if group and (group[-1].first + group[-1].number, group[-1].chunks) == (rows.first, rows.chunks):
            rows = Rows(group[-1].first, group.pop().number + rows.number, rows.chunks)
        group.append(rows)
