"""Batches against chunks cut one by one, and epochs against counting."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data import epochs
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import BatchStream, PackedRows, evaluation_batches
from stlm_kd.data.epochs import EpochOrder, permuted
from stlm_kd.errors import DataError
from tests.support.stores import END as EOS
from tests.support.stores import START, store_of

GOLDEN_ORDER = [
    *([10, 4, 12, 3, 5, 4, 10, 0], [16, 11, 8, 7, 1, 18, 6, 6], [7, 5, 19, 17, 2, 9, 8]),
    *([0, 10, 17, 16, 1, 1, 5, 6], [2, 7, 8, 7, 0, 8, 11, 9], [3, 4, 13, 19, 10, 18, 5]),
]

Piece = tuple[tuple[int, ...], tuple[int, ...]]
Bodies = st.lists(st.lists(st.integers(2, 60_000), max_size=40), min_size=1, max_size=25)


def rows_of(lengths: list[int], *, context: int = 8, weight: float = 1.0) -> PackedRows:
    return PackedRows(store_of([[7] * length for length in lengths]), context, weight=weight)


def full_rows(count: int, *, weight: float = 1.0, context: int = 8) -> PackedRows:
    """A part of exactly this many rows."""
    part = rows_of([context - 2] * count, weight=weight, context=context)
    assert len(part) == count
    return part


def pieces_of(batch: Batch) -> list[Piece]:
    """The ids and labels of each stretch of one document in a row."""
    pieces = []
    for row in range(len(batch.input_ids)):
        for number in range(1, int(batch.document_ids[row].max()) + 1):
            at = batch.document_ids[row] == number
            pieces.append((tuple(batch.input_ids[row, at].tolist()), tuple(batch.labels[row, at].tolist())))
    return pieces


def expected_pieces(bodies: list[list[int]], context: int) -> list[Piece]:
    pieces = []
    for body in bodies:
        document = [START, *body, EOS]
        labels = [*body, EOS, IGNORED]
        pieces += [
            (tuple(document[i : i + context]), tuple(labels[i : i + context]))
            for i in range(0, len(document), context)
        ]
    return pieces


def expected_wrapped_pieces(bodies: list[list[int]], context: int) -> list[Piece]:
    """Every stretch of at most ``context - 2`` of a body's tokens between start and end, without labels."""
    pieces = []
    for body in bodies:
        for i in range(0, max(len(body), 1), context - 2):
            piece = (START, *body[i : i + context - 2], EOS)
            pieces.append((piece, (IGNORED,) * len(piece)))
    return pieces


def all_rows(part: PackedRows) -> Batch:
    return part.batch(range(len(part)))


@settings(deadline=None, max_examples=80)
@given(Bodies, st.integers(2, 20))
def test_rows_hold_each_chunk_once_with_the_labels_of_its_own_document(
    bodies: list[list[int]], context: int
) -> None:
    batch = all_rows(PackedRows(store_of(bodies), context))
    assert Counter(pieces_of(batch)) == Counter(expected_pieces(bodies, context))


@settings(deadline=None, max_examples=80)
@given(Bodies, st.integers(2, 20))
def test_only_the_eos_of_a_document_and_padding_predict_nothing(
    bodies: list[list[int]], context: int
) -> None:
    batch = all_rows(PackedRows(store_of(bodies), context))
    assert int((batch.labels != IGNORED).sum()) == sum(len(body) + 1 for body in bodies)
    ignored = (batch.labels == IGNORED) & batch.attention_mask
    assert (batch.input_ids[ignored] == EOS).all()
    assert (batch.labels[~batch.attention_mask] == IGNORED).all()


@settings(deadline=None, max_examples=80)
@given(Bodies, st.integers(2, 20))
def test_positions_count_from_each_documents_first_position_in_the_row(
    bodies: list[list[int]], context: int
) -> None:
    batch = all_rows(PackedRows(store_of(bodies), context))
    for row in range(len(batch.input_ids)):
        seen: Counter[int] = Counter()
        for position in range(context):
            document = int(batch.document_ids[row, position])
            if document == 0:
                assert not batch.attention_mask[row, position]
                continue
            assert int(batch.position_ids[row, position]) == seen[document]
            seen[document] += 1
        # Documents stand side by side, in order, from the left; padding is on the right.
        ids = batch.document_ids[row][batch.attention_mask[row]].tolist()
        assert ids == sorted(ids) and batch.document_ids[row].tolist()[: len(ids)] == ids


@settings(deadline=None, max_examples=80)
@given(Bodies, st.integers(3, 20))
def test_wrapped_rows_hold_each_chunk_once_between_start_and_end_without_labels(
    bodies: list[list[int]], context: int
) -> None:
    part = PackedRows(store_of(bodies), context, wrapped=True)
    batch = all_rows(part)
    expected = expected_wrapped_pieces(bodies, context)
    assert Counter(pieces_of(batch)) == Counter(expected)
    assert part.num_tokens == batch.num_tokens() == sum(len(ids) for ids, _ in expected)
    assert (batch.labels == IGNORED).all() and (batch.input_ids[~batch.attention_mask] == EOS).all()


def test_positions_of_a_long_wrapped_document_count_from_each_chunks_start() -> None:
    batch = all_rows(PackedRows(store_of([[10, 11, 12, 13, 14]]), 4, wrapped=True))
    assert sorted(batch.input_ids.tolist()) == [
        [START, 10, 11, EOS],
        [START, 12, 13, EOS],
        [START, 14, EOS, EOS],
    ]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 0]]


@settings(deadline=None, max_examples=40)
@given(Bodies, st.integers(3, 12), st.booleans(), st.data())
def test_rows_read_together_are_those_read_one_by_one(
    bodies: list[list[int]], context: int, wrapped: bool, data: st.DataObject
) -> None:
    part = PackedRows(store_of(bodies), context, wrapped=wrapped)
    rows = data.draw(st.lists(st.integers(0, len(part) - 1), min_size=1, max_size=8))
    together = part.batch(rows)
    for place, row in enumerate(rows):
        for name in ("input_ids", "labels", "document_ids", "position_ids"):
            assert torch.equal(getattr(together, name)[place], getattr(part.batch([row]), name)[0])


def test_rows_come_in_the_order_asked_for_with_their_numbers() -> None:
    part = PackedRows(store_of([[token] * 6 for token in range(10, 15)]), 8)
    batch = part.batch([3, 0, 3])
    assert batch.example_ids.tolist() == [3, 0, 3]
    assert torch.equal(batch.input_ids[0], batch.input_ids[2])
    assert not torch.equal(batch.input_ids[0], batch.input_ids[1])


def test_types_and_shapes_are_those_of_a_batch() -> None:
    batch = rows_of([5, 5]).batch([1, 0])
    for tensor in (batch.input_ids, batch.labels, batch.document_ids, batch.position_ids):
        assert tensor.dtype == torch.int64 and tensor.shape == (2, 8)
    assert batch.attention_mask.dtype == torch.bool and batch.example_ids.shape == (2,)


@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    effective=st.integers(1, 40),
    micro=st.integers(1, 9),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 5),
)
def test_every_row_comes_once_in_an_epoch_over_ranks_and_micro_batches(
    rows: list[int], effective: int, micro: int, world_size: int, seed: int
) -> None:
    parts = [full_rows(count) for count in rows]
    streams = [
        BatchStream(
            parts,
            effective_batch=effective,
            micro_batch=micro,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    steps = streams[0].steps_per_epoch
    assert steps == -(-sum(rows) // effective)
    for epoch in (0, 1):
        seen: Counter[int] = Counter()
        for index in range(epoch * steps, (epoch + 1) * steps):
            by_rank = [stream.step(index) for stream in streams]
            assert len({len(batches) for batches in by_rank}) == 1
            ids = [
                number for batches in by_rank for batch in batches for number in batch.example_ids.tolist()
            ]
            real = [number for number in ids if number >= 0]
            last = index == (epoch + 1) * steps - 1
            assert len(real) == effective or (last and 1 <= len(real) <= effective)
            assert all(len(batch.input_ids) <= micro for batches in by_rank for batch in batches)
            seen.update(real)
        assert seen == Counter(range(sum(rows)))


def test_a_rank_without_a_row_gets_a_row_of_padding() -> None:
    streams = [
        BatchStream([full_rows(4)], effective_batch=3, micro_batch=2, seed=0, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    (alone,), (padding,) = streams[0].step(1), streams[1].step(1)
    assert alone.example_ids.min() >= 0
    assert padding.example_ids.tolist() == [-1]
    assert padding.num_tokens() == 0
    assert (padding.labels == IGNORED).all() and (padding.document_ids == 0).all()
    assert (padding.input_ids == EOS).all()


def test_a_step_depends_on_its_number_alone() -> None:
    def stream() -> BatchStream:
        return BatchStream([full_rows(7), full_rows(5)], effective_batch=4, micro_batch=2, seed=3)

    forwards = [stream().step(index) for index in range(9)]
    one = stream()
    for index in (8, 0, 4, 8, 2):
        again = one.step(index)
        assert [b.example_ids.tolist() for b in again] == [b.example_ids.tolist() for b in forwards[index]]
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(again, forwards[index], strict=True))


def test_any_split_of_a_step_holds_the_same_rows() -> None:
    part = full_rows(50)

    def ids(micro: int, world_size: int) -> list[list[int]]:
        streams = [
            BatchStream(
                [part], effective_batch=12, micro_batch=micro, seed=1, rank=rank, world_size=world_size
            )
            for rank in range(world_size)
        ]
        return [
            sorted(
                n for stream in streams for b in stream.step(index) for n in b.example_ids.tolist() if n >= 0
            )
            for index in range(6)
        ]

    assert ids(12, 1) == ids(5, 1) == ids(3, 2) == ids(1, 5)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        stream = BatchStream([full_rows(40)], effective_batch=40, micro_batch=40, seed=seed)
        return stream.step(epoch)[0].example_ids.tolist()

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(numbers) for numbers in orders}) == 4


def test_rows_of_several_parts_are_numbered_on_and_mixed() -> None:
    parts = [
        PackedRows(store_of([[10 + i] * 6 for i in range(4)]), 8),
        PackedRows(store_of([[50 + i] * 6 for i in range(3)]), 8),
    ]
    (batch,) = BatchStream(parts, effective_batch=7, micro_batch=7, seed=0).step(0)
    for number, row in zip(batch.example_ids.tolist(), batch.input_ids, strict=True):
        part, local = (parts[0], number) if number < 4 else (parts[1], number - 4)
        assert torch.equal(row, part.batch([local]).input_ids[0])


@pytest.mark.parametrize("weight", [0.25, 1.0, 1.5, 2.0, 3.75])
def test_a_weight_says_how_often_rows_come(weight: float) -> None:
    parts = [full_rows(40, weight=weight), full_rows(10)]
    stream = BatchStream(parts, effective_batch=16, micro_batch=16, seed=5)
    drawn = []
    for epoch in range(3):
        steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
        seen = Counter(n for index in steps for b in stream.step(index) for n in b.example_ids.tolist())
        assert sum(seen.values()) == round(40 * weight) + 10
        assert all(seen[number] == 1 for number in range(40, 50))
        assert {seen[number] for number in range(40)} <= {int(weight), int(weight) + 1}
        drawn.append(tuple(number for number in range(40) if seen[number] > int(weight)))
    assert (len(set(drawn)) == 3) == (weight != int(weight))


def test_the_order_of_an_epoch_is_that_of_earlier_versions() -> None:
    # Steps of version 1.0, by its own program: a resumed training reads the rows that it has not read.
    parts = [full_rows(11, weight=1.5), full_rows(5, weight=0.4), full_rows(4)]
    stream = BatchStream(parts, effective_batch=8, micro_batch=8, seed=7)
    found = [stream.step(index)[0].example_ids.tolist() for index in range(6)]
    assert found == GOLDEN_ORDER


@settings(max_examples=60)
@given(st.integers(1, 3000), st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_a_keyed_permutation_is_one(size: int, key: list[int]) -> None:
    assert sorted(permuted(np.arange(size), size, key=key).tolist()) == [*range(size)]


def test_a_keyed_permutation_mixes() -> None:
    size = 100_000
    orders = [permuted(np.arange(size), size, key=[0, key]) for key in range(4)]
    for order in orders:
        assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.02
        assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.02
        counts, _ = np.histogram(order[: size // 10], bins=50)
        assert abs(counts - 200).max() < 80  # five standard deviations are 71
    assert max(np.mean(a == b) for a, b in combinations(orders, 2)) < 0.001


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.4), (3.0, 0.0), (0.25, 2.75)])
def test_very_many_rows_come_as_often_as_few_and_without_their_order_in_memory(
    weights: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, options = (40, 21), {"seed": 3, "epoch": 1}
    shuffled = EpochOrder(sizes, weights, **options)
    monkeypatch.setattr(epochs, "LARGEST_SHUFFLED", 30)
    computed = EpochOrder(sizes, weights, **options)
    rows = computed.rows(0, len(computed) + 5).tolist()
    assert len(rows) == len(computed) == len(shuffled)
    assert rows == [computed.rows(place, place + 1).item() for place in range(len(rows))]
    assert rows != sorted(rows) != EpochOrder(sizes, weights, seed=3, epoch=2).rows(0, 99).tolist()
    for first, last, weight in ((0, 40, weights[0]), (40, 61, weights[1])):
        counts = Counter(row for row in rows if first <= row < last)
        assert sum(counts.values()) == sum(first <= row < last for row in shuffled.rows(0, len(rows)))
        assert {counts[row] for row in range(first, last)} <= {int(weight), int(weight) + (weight % 1 > 0)}


def test_a_billion_rows_begin_an_epoch_at_once() -> None:
    order = EpochOrder((10**9, 3), (1.5, 1.0), seed=0, epoch=0)
    assert len(order) == 1_500_000_003
    rows = order.rows(10**9, 10**9 + 1000)
    assert len({*rows.tolist()}) > 990 and rows.max() < 10**9 + 3


def test_weights_of_zero_leave_nothing_to_train_on() -> None:
    with pytest.raises(DataError, match="weight of every source is 0"):
        BatchStream([full_rows(4, weight=0)], effective_batch=2, micro_batch=2, seed=0)


def test_text_shorter_than_one_context_is_refused_with_both_numbers() -> None:
    parts = [rows_of([3], context=32), rows_of([4], context=32)]
    with pytest.raises(DataError, match=r"only 11 tokens, but one row of data\.context has 32"):
        BatchStream(parts, effective_batch=1, micro_batch=1, seed=0)
    with pytest.raises(DataError, match="only 11 tokens"):
        evaluation_batches(parts, micro_batch=1)


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 25), micro=st.integers(1, 6), world_size=st.integers(1, 4))
def test_evaluation_sees_every_row_once_whatever_its_weight(rows: int, micro: int, world_size: int) -> None:
    parts = [full_rows(rows, weight=0.0), full_rows(3, weight=2.5)]
    by_rank = [
        list(evaluation_batches(parts, micro_batch=micro, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    ids = [n for batches in by_rank for b in batches for n in b.example_ids.tolist() if n >= 0]
    assert sorted(ids) == list(range(rows + 3))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 25), most=st.integers(1, 40), micro=st.integers(1, 6), world_size=st.integers(1, 4)
)
def test_an_evaluation_of_some_rows_spreads_them_evenly_and_alike_in_any_division(
    rows: int, most: int, micro: int, world_size: int
) -> None:
    parts = [full_rows(rows), full_rows(3)]
    by_rank = [
        list(evaluation_batches(parts, micro_batch=micro, rank=rank, world_size=world_size, most_rows=most))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in by_rank}) == 1
    ids = sorted(n for batches in by_rank for b in batches for n in b.example_ids.tolist() if n >= 0)
    assert len(ids) == len({*ids}) == min(most, rows + 3)
    gaps = np.diff([*ids, rows + 3])
    assert ids[0] == 0 and gaps.max() - gaps.min() <= 1
