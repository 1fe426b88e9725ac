"""Which rows of an optimizer step are sources of each other, and which micro-batch each row is dealt to.

Rows in pairs are each the other's source in interchange interventions. Which rows are a pair is a function of
the step's rows in their order; only where they are dealt to depends on micro-batches and processes.

Shapes: N rows of an optimizer step, B of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

NO_SOURCE = -1
"""In place of a row's source: no other row of the step."""


def in_pairs(numbers: Integers) -> Integers:
    """An order of a step's rows in which ``sources`` pairs neighbours, (N,).

    Rows of one number, which come more than once where their text's weight is above 1, stay apart unless they
    are more than half of all.

    Args:
        numbers: Of the rows in the data, in an order that is random, as the pairs are then.

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
    """The place of each row's source, (N,): its neighbour in a pair.

    Of an odd number of rows the last three make a circle. ``NO_SOURCE`` where a step has one row, or where
    the neighbour is the same row of the data again.

    Args:
        numbers: Of the rows in the data, in pairs.

    >>> sources(np.array([4, 7, 5, 8, 6])).tolist()
    [1, 0, 3, 4, 2]
    """
    places = np.arange(len(numbers))
    found = places ^ 1
    if len(numbers) % 2:
        found[-3:] = np.roll(places[-3:], -1)
    return np.where(numbers[found] == numbers, NO_SOURCE, found)


def sources_within(own: Integers, source: Integers) -> tuple[Integers, Integers]:
    """The sources of a micro-batch's rows, and the rows of the step that are sources but lie in others.

    Args:
        own: Places of the micro-batch's rows in the step, (B,).
        source: Of each row of the step, (N,).

    Returns:
        For each row, (B,), a row of the micro-batch, or from B on a row of those outside, or ``NO_SOURCE``;
        and the places of those outside.

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
    """The places of the rows of each of a rank's micro-batches, as many on every rank; some may be empty.

    Args:
        lengths: Of a step's rows, falling, (N,); every row of a micro-batch is as long as its first.
        rank: This process, of ``world_size``.
        world_size: Processes that share the rows.
        most: Rows of a micro-batch.
        cost: Positions that a micro-batch counts as besides those of its rows.
        pairs: Whether neighbours, 0 and 1, 2 and 3 and so on, go to one micro-batch, if it holds two rows.
    """
    group = 2 if pairs and most > 1 else 1
    place = np.arange(len(lengths))
    own, longest = (place[place // group % world_size == one] for one in (rank, 0))
    bounds = cheapest_bounds(lengths[longest].tolist(), most=most, cost=cost, group=group)
    return [own[first:last] for first, last in bounds]


def share_run_again(rows: int, *, micro_batch: int, world_size: int = 1) -> float:
    """The share of a step's rows whose source lies in no micro-batch with them, and is run again for them.

    >>> [share_run_again(16, micro_batch=size) for size in (1, 2, 5, 16)]
    [1.0, 0.0, 0.0, 0.0]
    >>> share_run_again(5, micro_batch=2)
    0.4
    """
    source, lengths = sources(np.arange(rows)), np.ones(rows, np.int64)
    again = 0
    for rank in range(world_size):
        for own in dealt(lengths, rank=rank, world_size=world_size, most=micro_batch, cost=1, pairs=True):
            within, _ = sources_within(own, source)
            again += int(((within == NO_SOURCE) | (within >= len(own))).sum())
    return again / rows


def cheapest_bounds(lengths: Sequence[int], *, most: int, cost: int, group: int = 1) -> list[tuple[int, int]]:
    """The groups of neighbouring rows that take the fewest positions, as (first, one after the last).

    Args:
        lengths: Of the rows, falling; every row of a group is as long as its first.
        most: Rows of a group.
        cost: Positions that a group counts as besides those of its rows.
        group: A group begins after a multiple of so many rows, at most ``most``; and if it may have more, the
            last one not with what is left over beyond a multiple.

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
