"""Pairs of source rows within an optimizer step, and the assignment of rows to micro-batches.

The rows of a pair are each other's source in interchange interventions. Pairs are a function of the step's
rows in their order; only the assignment depends on micro-batches and processes. Shapes: N rows of an
optimizer step, B rows of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Integers: TypeAlias = "npt.NDArray[np.int64]"

NO_SOURCE = -1
"""Marks a row without a source: the step has no other row."""


def in_pairs(numbers: Integers) -> Integers:
    """An order of a step's rows in which ``sources`` pairs neighbours, (N,).

    ``numbers`` are row numbers in the data, in random order; the pairs are then random too. Rows with the
    same number, which occur if their text's weight is above 1, are not paired unless they are more than half
    of all.

    >>> in_pairs(np.array([7, 7, 4, 5])).tolist()
    [1, 3, 0, 2]
    """
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    together = np.argsort(first[inverse], kind="stable")  # equal numbers side by side
    half = len(numbers) // 2
    order = together.copy()
    order[: 2 * half : 2], order[1 : 2 * half : 2] = together[:half][::-1], together[half : 2 * half][::-1]
    return order


def sources(numbers: Integers) -> Integers:
    """The index of each row's source, (N,): its neighbour in a pair; ``numbers`` are row numbers in pairs.

    With an odd number of rows the last three form a cycle. ``NO_SOURCE`` if a step has one row, or if the
    neighbour is the same row of the data.

    >>> sources(np.array([4, 7, 5, 8, 6])).tolist()
    [1, 0, 3, 4, 2]
    """
    places = np.arange(len(numbers))
    found = places ^ 1
    if len(numbers) % 2:
        found[-3:] = np.roll(places[-3:], -1)
    return np.where(numbers[found] == numbers, NO_SOURCE, found)


def sources_within(own: Integers, source: Integers) -> tuple[Integers, Integers]:
    """The sources of a micro-batch's rows ``own`` (B,), by the ``source`` of each row of the step (N,).

    First, for each row, (B,), the index of a row of the micro-batch, or from B on of an outside row, or
    ``NO_SOURCE``; second, the indices of these outside rows in the step.

    >>> within, outside = sources_within(np.array([2, 3]), np.array([1, 0, 3, 4, 2]))
    >>> within.tolist(), outside.tolist()
    ([1, 2], [4])
    """
    wanted = source[own]
    outside = np.setdiff1d(wanted[wanted != NO_SOURCE], own)
    place = {row: i for i, row in enumerate([*own.tolist(), *outside.tolist()])} | {NO_SOURCE: NO_SOURCE}
    return np.array([place[row] for row in wanted.tolist()], np.int64), outside


def dealt(
    lengths: Integers, *, rank: int, world_size: int, most: int, cost: int, pairs: bool = False
) -> list[Integers]:
    """Row indices of each of a rank's micro-batches; the same number on every rank, some may be empty.

    ``lengths``, (N,), are those of a step's rows, descending; a micro-batch of at most ``most`` rows is
    padded to its first row, and costs ``cost`` positions more. With ``pairs``, neighbours (0 and 1, 2 and 3,
    …) share a micro-batch, if it can hold two rows.
    """
    group = 2 if pairs and most > 1 else 1
    place = np.arange(len(lengths))
    own, longest = (place[place // group % world_size == one] for one in (rank, 0))
    bounds = cheapest_bounds(lengths[longest].tolist(), most=most, cost=cost, group=group)
    return [own[first:last] for first, last in bounds]


def share_run_again(rows: int, *, micro_batch: int, world_size: int = 1) -> float:
    """The fraction of a step's rows whose source is in another micro-batch and has to be recomputed.

    >>> [share_run_again(16, micro_batch=size) for size in (1, 2, 5, 16)]
    [1.0, 0.0, 0.0, 0.0]
    >>> share_run_again(5, micro_batch=2)
    0.4
    """
    source, lengths = sources(np.arange(rows)), np.ones(rows, np.int64)
    again = 0
    for rank in range(world_size):
        for own in dealt(lengths, rank=rank, world_size=world_size, most=micro_batch, cost=1, pairs=True):
            if micro_batch > 1 and len(own) and own[-1] < rows - 3:
                continue  # pairs, and all of them whole: only the last three rows may be a cycle
            within, _ = sources_within(own, source)
            again += int(((within == NO_SOURCE) | (within >= len(own))).sum())
    return again / rows


def cheapest_bounds(lengths: Sequence[int], *, most: int, cost: int, group: int = 1) -> list[tuple[int, int]]:
    """Groups of neighbouring rows with the fewest positions in total, as (first, one after the last).

    ``lengths`` are descending: a group of at most ``most`` rows is padded to its first row, and costs
    ``cost`` positions more. Groups begin at multiples of ``group``, which is at most ``most``; if groups may
    be larger, none begins with the remainder beyond the last multiple.

    >>> cheapest_bounds([40, 40, 8, 8, 8], most=4, cost=16)
    [(0, 2), (2, 5)]
    >>> cheapest_bounds([40, 40, 8, 8, 8], most=5, cost=1000)
    [(0, 5)]
    >>> cheapest_bounds([40, 8, 8, 8, 8], most=4, cost=16, group=2)
    [(0, 2), (2, 5)]
    """
    sizes = np.asarray(lengths, np.int64)
    may_begin = np.arange(len(sizes)) % group == 0
    left_over = len(sizes) % group
    if most > group < len(sizes) and left_over:
        may_begin[-left_over] = False
    if len(sizes) and sizes[0] == sizes[-1]:
        return _fewest_bounds(len(sizes), np.flatnonzero(may_begin), most)
    best = np.zeros(len(sizes) + 1, np.int64)
    begin = np.zeros(len(sizes) + 1, np.int64)
    for end in range(1, len(sizes) + 1):
        first = np.arange(max(0, end - most), end)
        first = first[may_begin[first]]
        totals = best[first] + (end - first) * sizes[first] + cost
        choice = int(totals.argmin())
        best[end], begin[end] = totals[choice], first[choice]
    bounds: list[tuple[int, int]] = []
    end = len(sizes)
    while end:
        bounds.insert(0, (int(begin[end]), end))
        end = int(begin[end])
    return bounds


def _fewest_bounds(rows: int, begins: Integers, most: int) -> list[tuple[int, int]]:
    """The fewest groups of at most ``most`` rows that begin at some of ``begins``; the last are largest."""
    bounds: list[tuple[int, int]] = []
    end = rows
    while end:
        first = int(begins[np.searchsorted(begins, end - most)])
        bounds.append((first, end))
        end = first
    return bounds[::-1]
