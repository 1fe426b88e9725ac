"""Masking against the reference's values, exact probabilities, and steps that are split in any way."""

import json
import math
from collections import Counter
from collections.abc import Iterable
from itertools import permutations
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data import masking as masking_module
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import BatchStream, PackedRows, evaluation_batches
from stlm_kd.data.corpus import pack_sources, prepare
from stlm_kd.data.masking import (
    Masking,
    masking_for,
    masking_weights,
    remembered_counts,
    token_counts,
)
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import TokenStore
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.errors import ModelError
from tests.support.paths import GOLDEN_FOLDER
from tests.support.stores import END, START, store_of

PAD, MASK = 2, 3
SPECIAL = (START, END, PAD, MASK)
VOCABULARY = 40
GOLDEN = json.loads((GOLDEN_FOLDER / "mlm_masking.json").read_text())

Bodies = st.lists(st.lists(st.integers(4, VOCABULARY - 1), max_size=30), min_size=4, max_size=25)


def masking_of(parts: Iterable[PackedRows], **options: float) -> Masking:
    counts = token_counts((part.store for part in parts), VOCABULARY)
    return Masking(masking_weights(counts, SPECIAL), MASK, **options)


def random_part(*, rows: int, context: int = 16, weight: float = 1.0, seed: int = 0) -> PackedRows:
    """A part of this many full rows of random tokens."""
    generator = np.random.default_rng(seed)
    bodies = [generator.integers(4, VOCABULARY, context - 2).tolist() for _ in range(rows)]
    part = PackedRows(store_of(bodies), context, weight=weight, wrapped=True)
    assert len(part) == rows
    return part


def rows_of(batches: Iterable[Batch]) -> Counter[tuple[int, ...]]:
    """Each row that is not padding, by number, ids and labels, and how often it comes."""
    return Counter(
        (number, *ids, *labels)
        for batch in batches
        for number, ids, labels in zip(
            batch.example_ids.tolist(), batch.input_ids.tolist(), batch.labels.tolist(), strict=True
        )
        if number >= 0
    )


def drawn_in(batches: Iterable[Batch]) -> int:
    return sum(int((batch.labels != IGNORED).sum()) for batch in batches)


def test_weights_are_those_of_the_reference() -> None:
    weights = masking_weights(np.array(GOLDEN["counts"]), list(GOLDEN["special"].values()))
    assert weights == pytest.approx(GOLDEN["token_probs"], rel=1e-7, abs=0)


@pytest.mark.parametrize("case", GOLDEN["n_tgt"], ids=str)
def test_as_many_positions_are_drawn_as_in_the_reference(case: dict) -> None:
    lengths = np.array(case["lengths"])
    attended = np.arange(lengths.max()) < lengths[:, None]
    ids = np.where(attended, 7, PAD)
    masking = Masking(np.ones(VOCABULARY), MASK, case["mask_prop"])
    _, labels = masking.apply(ids, attended, np.random.default_rng(0))
    assert (labels != IGNORED).sum() == case["n_tgt"]


def exact_probabilities(weights: list[float], count: int) -> dict[frozenset[int], float]:
    """Of each set of places, by every order in which it may be drawn."""
    result: dict[frozenset[int], float] = {}
    for order in permutations(range(len(weights)), count):
        probability, left = 1.0, sum(weights)
        for place in order:
            probability *= weights[place] / left
            left -= weights[place]
        result[frozenset(order)] = result.get(frozenset(order), 0.0) + probability
    return result


def within_chance(seen: Counter[frozenset[int]], expected: dict[frozenset[int], float]) -> bool:
    """Whether every frequency is less than five standard deviations from its probability."""
    total = sum(seen.values())
    return set(seen) <= {drawn for drawn, p in expected.items() if p > 0} and all(
        abs(seen[drawn] - total * p) <= 5 * math.sqrt(total * p * (1 - p)) for drawn, p in expected.items()
    )


@pytest.mark.parametrize(
    ("weights", "count"), [([1.0, 2.0, 5.0], 2), ([0.02, 1.0, 0.3, 0.3], 2), ([1.0, 0.1, 0.0, 4.0, 2.0], 3)]
)
def test_sets_are_drawn_as_one_after_the_other_by_the_weights_that_are_left(
    weights: list[float], count: int
) -> None:
    expected = exact_probabilities(weights, count)
    assert sum(expected.values()) == pytest.approx(1)
    ids, attended = np.arange(len(weights)), np.ones(len(weights), np.bool_)
    masking = Masking(np.array(weights), 0, share=count / len(weights))
    generator = np.random.default_rng(0)
    labels = (masking.apply(ids, attended, generator)[1] for _ in range(20_000))
    ours = Counter(frozenset(np.flatnonzero(row != IGNORED).tolist()) for row in labels)
    assert within_chance(ours, expected)

    torch.manual_seed(0)
    sampled = torch.multinomial(torch.tensor([weights] * 20_000), count)
    assert within_chance(Counter(map(frozenset, sampled.tolist())), expected)

    # The check sees a difference: places drawn with equal chances do not pass it.
    even = torch.multinomial((torch.tensor([weights] * 20_000) > 0).float(), count)
    assert not within_chance(Counter(map(frozenset, even.tolist())), expected)


def test_eight_tenths_are_masked_one_is_any_id_and_one_stays() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(4, VOCABULARY, (400, 500))
    masking = Masking(masking_weights(np.ones(VOCABULARY, np.int64), SPECIAL), MASK)
    seen, labels = masking.apply(ids, np.ones_like(ids, np.bool_), generator)
    drawn = labels != IGNORED
    assert drawn.sum() == 0.15 * ids.size
    stayed = (seen == ids)[drawn].mean()
    masked = (seen == MASK)[drawn].mean()
    any_id = 0.1 / VOCABULARY  # the replaced that are replaced by themselves or by the mask
    assert masked == pytest.approx(0.8 + any_id, abs=0.01)
    assert stayed == pytest.approx(0.1 + any_id, abs=0.01)
    others = np.bincount(seen[drawn & (seen != ids) & (seen != MASK)], minlength=VOCABULARY)
    expected = drawn.sum() * 0.1 / VOCABULARY
    assert np.delete(others, MASK) == pytest.approx(np.full(VOCABULARY - 1, expected), abs=5 * expected**0.5)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=12), min_size=1, max_size=6),
    st.floats(0.01, 1),
    st.integers(0, 3),
)
def test_only_drawn_positions_change_and_only_they_have_labels(
    rows: list[list[int]], share: float, seed: int
) -> None:
    attended = np.arange(12) < np.array([len(row) for row in rows])[:, None]
    ids = np.array([row + [PAD] * (12 - len(row)) for row in rows])
    before = ids.copy()
    masking = Masking(masking_weights(np.ones(VOCABULARY, np.int64), SPECIAL), MASK, share)
    seen, labels = masking.apply(ids, attended, np.random.default_rng(seed))
    drawn = labels != IGNORED
    assert np.array_equal(ids, before)
    assert np.array_equal(seen[~drawn], ids[~drawn]) and np.array_equal(labels[drawn], ids[drawn])
    allowed = attended & ~np.isin(ids, SPECIAL)
    assert not (drawn & ~allowed).any()
    assert drawn.sum() == min(math.ceil(share * sum(map(len, rows))), allowed.sum())

    # How the tokens lie among padding changes nothing.
    alone, labels_alone = masking.apply(
        ids[attended], np.ones(attended.sum(), np.bool_), np.random.default_rng(seed)
    )
    assert np.array_equal(seen[attended], alone) and np.array_equal(labels[attended], labels_alone)


@given(st.lists(Bodies, min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_counts_are_those_of_all_stores_together(corpora: list[list[list[int]]]) -> None:
    expected = Counter(token for bodies in corpora for body in bodies for token in body)
    documents = sum(map(len, corpora))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking_module, "_BLOCK", 7)
        counts = token_counts(map(store_of, corpora), VOCABULARY)
    assert counts.tolist() == [documents, documents, *(expected[token] for token in range(2, VOCABULARY))]


def test_a_tokenizer_says_which_ids_are_special_and_its_text_how_frequent_they_are(tmp_path: Path) -> None:
    texts = ["the otter saw the heron near the mill", "the heron slept"] * 4
    tokenizer = train_tokenizer(texts, size=270, masked=True)
    part = PackedRows(build_store(texts, tokenizer, tmp_path / "store"), 16, wrapped=True)
    masking = masking_for(tokenizer, [part, part])
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    counts = Counter(ids * 2)
    assert masking.mask_id == tokenizer.mask_token_id and masking.share == 0.15
    assert masking.weights[:4].tolist() == [0, 0, 0, 0]
    assert masking.weights[4:] == pytest.approx([max(counts[i], 1) ** -0.7 for i in range(4, 270)])


def test_counts_are_remembered_beside_the_ids_that_they_are_of(tmp_path: Path) -> None:
    texts = ["the otter saw the heron", "the heron slept"]
    tokenizer = train_tokenizer(texts, size=270, masked=True)
    store, other = (build_store(texts[i:], tokenizer, tmp_path / str(i)) for i in range(2))
    expected, file = token_counts([store], 270).tolist(), store.folder / "counts.json"
    with mock.patch.object(masking_module, "token_counts", wraps=token_counts) as count:
        for _ in range(2):
            assert remembered_counts(store).tolist() == expected
        assert count.call_count == 1
        remembered_counts(other)
        wrong = ((other.folder / "counts.json").read_text(), "{}", file.read_text().replace("1", "2", 1))
        for calls, content in enumerate(wrong, start=3):
            file.write_text(content)
            assert remembered_counts(store).tolist() == expected and count.call_count == calls
    assert TokenStore.open(store.folder).identity == store.identity


def test_a_tokenizer_without_a_mask_is_refused_with_what_to_do(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the otter"], size=260)
    part = PackedRows(build_store(["the otter"], tokenizer, tmp_path / "store"), 4, wrapped=True)
    with pytest.raises(ModelError, match=r"no mask token.*set mask_token"):
        masking_for(tokenizer, [part])


@settings(deadline=None, max_examples=60)
@given(
    first=Bodies,
    second=Bodies,
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    effective=st.integers(1, 12),
    micro=st.integers(1, 5),
    world_size=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_any_split_of_a_step_is_masked_alike(
    first: list[list[int]],
    second: list[list[int]],
    weight: float,
    effective: int,
    micro: int,
    world_size: int,
    seed: int,
) -> None:
    parts = [
        PackedRows(store_of([*first, [7] * 8]), 8, weight=weight, wrapped=True),
        PackedRows(store_of(second), 8, wrapped=True),
    ]
    masking = masking_of(parts)

    def stream(micro: int, rank: int, world_size: int) -> BatchStream:
        return BatchStream(
            parts,
            effective_batch=effective,
            micro_batch=micro,
            seed=seed,
            rank=rank,
            world_size=world_size,
            masking=masking,
        )

    whole = stream(effective, 0, 1)
    ranks = [stream(micro, rank, world_size) for rank in range(world_size)]
    for index in range(2 * whole.steps_per_epoch):
        by_rank = [rank.step(index) for rank in ranks]
        assert len({len(batches) for batches in by_rank}) == 1
        assert rows_of(whole.step(index)) == rows_of(batch for batches in by_rank for batch in batches)


def test_masks_depend_on_the_steps_number_alone() -> None:
    def stream(seed: int = 3) -> BatchStream:
        parts = [random_part(rows=7), random_part(rows=5, seed=1)]
        return BatchStream(
            parts, effective_batch=4, micro_batch=2, seed=seed, masking=masking_of(parts, share=0.4)
        )

    forwards = [rows_of(stream().step(index)) for index in range(9)]
    one = stream()
    for index in (8, 0, 4, 4, 8, 2):
        assert rows_of(one.step(index)) == forwards[index]
    assert len({frozenset(rows) for rows in forwards}) == 9
    assert rows_of(stream(seed=4).step(0)) != forwards[0]


def test_each_epoch_masks_the_same_rows_otherwise() -> None:
    # One row, so that the epochs do not differ in their order.
    part = random_part(rows=1, context=64)
    stream = BatchStream([part], effective_batch=6, micro_batch=6, seed=0, masking=masking_of([part]))
    assert stream.steps_per_epoch == 1
    rows = [row for epoch in range(5) for row in rows_of(stream.step(epoch))]
    assert len(set(rows)) == 5 and {row[0] for row in rows} == {0}


def test_a_row_that_comes_twice_in_a_step_is_masked_twice() -> None:
    part = random_part(rows=3, weight=2.0)
    stream = BatchStream([part], effective_batch=6, micro_batch=6, seed=0, masking=masking_of([part]))
    rows = rows_of(stream.step(0))
    assert Counter(row[0] for row in rows) == {0: 2, 1: 2, 2: 2} and len(rows) == 6


@settings(deadline=None, max_examples=40)
@given(Bodies, st.integers(1, 9), st.integers(3, 12))
def test_a_share_of_the_whole_step_is_drawn_and_nothing_else_changes(
    bodies: list[list[int]], effective: int, context: int
) -> None:
    # Each body with words enough, so that the share can be drawn in every step.
    part = PackedRows(store_of([[5, *body] for body in bodies]), context, wrapped=True)
    options = {"effective_batch": effective, "micro_batch": 2, "seed": 1}
    masked = BatchStream([part], **options, masking=masking_of([part]))
    plain = BatchStream([part], **options)
    for index in range(masked.steps_per_epoch):
        ours, before = masked.step(index), plain.step(index)
        assert drawn_in(ours) == math.ceil(0.15 * sum(batch.num_tokens() for batch in ours))
        for batch, original in zip(ours, before, strict=True):
            for name in ("attention_mask", "document_ids", "position_ids", "example_ids"):
                assert torch.equal(getattr(batch, name), getattr(original, name))
            drawn = batch.labels != IGNORED
            assert torch.equal(torch.where(drawn, batch.labels, batch.input_ids), original.input_ids)


@pytest.mark.parametrize("world_size", [1, 3])
def test_rows_of_nothing_but_special_tokens_have_no_labels(world_size: int) -> None:
    part = PackedRows(store_of([[]] * 6), 6, wrapped=True)
    masking = masking_of([part])
    for rank in range(world_size):
        stream = BatchStream(
            [part],
            effective_batch=2,
            micro_batch=1,
            seed=0,
            rank=rank,
            world_size=world_size,
            masking=masking,
        )
        evaluation = evaluation_batches(
            [part], micro_batch=2, rank=rank, world_size=world_size, masking=masking
        )
        for batches in (stream.step(0), list(evaluation)):
            assert batches and drawn_in(batches) == 0


@settings(deadline=None, max_examples=40)
@given(Bodies, Bodies, st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_evaluation_masks_each_row_alike_whatever_it_is_read_with(
    first: list[list[int]], second: list[list[int]], micro: int, world_size: int, seed: int
) -> None:
    parts = [PackedRows(store_of([*bodies, [7] * 8]), 8, wrapped=True) for bodies in (first, second)]
    masking = masking_of(parts)
    whole = rows_of(evaluation_batches(parts, micro_batch=100, masking=masking, seed=seed))
    assert sorted(row[0] for row in whole) == list(range(len(parts[0]) + len(parts[1])))
    split = (
        batch
        for rank in range(world_size)
        for batch in evaluation_batches(
            parts, micro_batch=micro, rank=rank, world_size=world_size, masking=masking, seed=seed
        )
    )
    assert rows_of(split) == whole


def test_evaluation_draws_a_share_of_each_row_and_another_with_another_seed() -> None:
    # All rows alike, so that nothing but the row's number tells them apart.
    part = PackedRows(store_of([[7] * 14] * 9), 16, wrapped=True)
    masking = masking_of([part])
    seen = []
    for seed in (0, 1):
        (batch,) = evaluation_batches([part], micro_batch=9, masking=masking, seed=seed)
        assert ((batch.labels != IGNORED).sum(1) == math.ceil(0.15 * 16)).all()
        places = [tuple(row.nonzero().flatten().tolist()) for row in batch.labels != IGNORED]
        assert len(set(places)) >= 7
        seen.append(places)
    assert seen[0] != seen[1]


def test_bert_draws_rare_words_of_wikitext_more_often(shared_data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "bert-base-uncased"))
    source = Source(path=str(shared_data / "lm" / "wikitext-2" / "valid.txt.gz"))
    parts = pack_sources(prepare([source], tokenizer, tmp_path), 128, wrapped=True)
    masking = masking_for(tokenizer, parts)
    stream = BatchStream(parts, effective_batch=10**6, micro_batch=10**6, seed=0, masking=masking)
    (batch,) = stream.step(0)
    originals = parts[0].batch(batch.example_ids.numpy()).input_ids[batch.attention_mask].numpy()
    drawn = batch.labels[batch.labels != IGNORED].numpy()
    assert len(drawn) == math.ceil(0.15 * len(originals))
    assert not set(drawn.tolist()) & set(tokenizer.all_special_ids)
    occurring = np.bincount(originals, minlength=len(tokenizer))
    drawing = np.bincount(drawn, minlength=len(tokenizer))
    rare = (occurring > 0) & (occurring < 10)
    the = tokenizer.convert_tokens_to_ids("the")
    assert drawing[rare].sum() / occurring[rare].sum() > 5 * drawing[the] / occurring[the]
