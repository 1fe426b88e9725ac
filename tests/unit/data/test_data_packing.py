"""Packing against what a packing must be, a slow best fit, and real text's lengths."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.packing import cut, pack

CONTEXT = 24
Lengths = st.lists(st.integers(1, CONTEXT), max_size=200).map(lambda lengths: np.array(lengths, np.int64))


def row_sums(lengths: np.ndarray, context: int) -> list[int]:
    rows = pack(lengths, context)
    return [
        int(lengths[rows.chunks[a:b]].sum()) for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)
    ]


def best_fit_decreasing(lengths: list[int], context: int) -> list[int]:
    """The rows' sums, chunk by chunk."""
    sums: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [total for total in sums if total + length <= context]
        if fitting:
            index = sums.index(max(fitting))
            sums[index] += length
        else:
            sums.append(length)
    return sorted(sums)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=20), st.integers(3, 12), st.integers(0, 2))
def test_documents_are_cut_where_a_loop_cuts_them(lengths: list[int], context: int, overlap: int) -> None:
    offsets = np.cumsum([0, *lengths])
    expected = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        while end - begin > context:
            expected.append((begin, context, True))
            begin += context - overlap
        expected.append((begin, end - begin, False))
    assert (
        list(zip(*(array.tolist() for array in cut(offsets, context, overlap=overlap)), strict=True))
        == expected
    )


@settings(deadline=None, max_examples=200)
@given(Lengths)
def test_every_chunk_is_placed_once(lengths: np.ndarray) -> None:
    rows = pack(lengths, CONTEXT)
    assert sorted(rows.chunks.tolist()) == list(range(len(lengths)))
    assert rows.starts[0] == 0
    assert rows.starts[-1] == len(lengths)


@settings(deadline=None, max_examples=200)
@given(Lengths)
def test_no_row_is_empty_or_overfull(lengths: np.ndarray) -> None:
    assert all(1 <= total <= CONTEXT for total in row_sums(lengths, CONTEXT))


@settings(deadline=None, max_examples=300)
@given(Lengths)
def test_rows_are_as_full_as_a_chunk_by_chunk_best_fit_makes_them(lengths: np.ndarray) -> None:
    assert sorted(row_sums(lengths, CONTEXT)) == best_fit_decreasing(lengths.tolist(), CONTEXT)


@settings(deadline=None, max_examples=200)
@given(Lengths)
def test_at_most_one_row_is_less_than_half_full(lengths: np.ndarray) -> None:
    # Two such rows would fit into one, and best fit opens a row only when none has room.
    assert sum(total * 2 < CONTEXT for total in row_sums(lengths, CONTEXT)) <= 1


def test_no_chunks_make_no_rows() -> None:
    assert len(pack(np.zeros(0, np.int64), 8)) == 0


def test_hundreds_of_thousands_of_short_chunks_leave_less_than_a_thousandth_unused() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 100, 300_000).clip(max=512)
    assert lengths.sum() / (512 * len(pack(lengths, 512))) > 0.999
