"""Batches of examples: what the tokenizer says, padded little, every example once, however it is split."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batch import IGNORED
from stlm_kd.data.dealing import cheapest_bounds
from stlm_kd.data.labelled.batches import (
    EncodedExamples,
    ExampleBatch,
    ExampleStream,
    example_evaluation_batches,
)
from stlm_kd.data.labelled.encoding import EncodedTexts, encode_texts, padding_id
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer

TEXTS = ["the cat sat on the mat and the dog sat on the log", "a cat", "naïve 日本", "the dog " * 9]
PAIRS = [("the cat sat", "a dog"), ("a", "the log " * 20), ("the mat " * 20, "b"), ("the mat " * 9, "c " * 9)]


@pytest.fixture(scope="module")
def causal() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, "bpe", 270)


@pytest.fixture(scope="module")
def masked() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 3, "bpe", 272, masked=True)


@pytest.fixture(scope="module")
def bert(shared_data: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(str(shared_data / "tokenizers" / "bert-base-uncased"))


def numbers(lengths: Sequence[int], *, context: int = 64) -> EncodedTexts:
    """Texts whose tokens tell the text: the text's number at every position."""
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype(np.int32)
    return EncodedTexts(tokens, None, np.cumsum([0, *lengths]), context, padding=999, truncated=0)


def made(lengths: Sequence[int], *, others: bool = False) -> EncodedExamples:
    labels = np.arange(len(lengths)) % 3
    return EncodedExamples(labels, numbers(lengths), {"other": numbers(lengths[::-1])} if others else {})


def check_rows(batch: ExampleBatch, lengths: Sequence[int]) -> None:
    """Every row holds its example's tokens, then padding, and its label."""
    width = batch.input_ids.shape[1]
    assert width == min(64, -(-max(lengths[i] for i in batch.example_ids) // 8) * 8)
    for row, example in enumerate(batch.example_ids.tolist()):
        filled = lengths[example]
        assert batch.input_ids[row].tolist() == [example] * filled + [999] * (width - filled)
        assert batch.attention_mask[row].tolist() == [True] * filled + [False] * (width - filled)
        assert int(batch.labels[row]) == example % 3


@pytest.mark.parametrize("name", ["causal", "masked", "bert"])
def test_rows_are_what_the_tokenizer_says(name: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(name)
    found = encode_texts([(text,) for text in TEXTS], tokenizer, context=64).rows(np.arange(4))
    expected = tokenizer(TEXTS, padding=True, pad_to_multiple_of=8, padding_side="right", return_tensors="pt")
    assert torch.equal(found.input_ids, expected["input_ids"])
    assert torch.equal(found.attention_mask, expected["attention_mask"].bool())
    assert found.token_type_ids is None


@pytest.mark.parametrize("context", [64, 12])
def test_pairs_are_what_berts_tokenizer_says(context: int, bert: PreTrainedTokenizerFast) -> None:
    texts = encode_texts(PAIRS, bert, context=context)
    found = texts.rows(np.arange(4))
    expected = bert(
        [a for a, _ in PAIRS], [b for _, b in PAIRS], truncation="longest_first", max_length=context,
        padding=True, return_tensors="pt", return_token_type_ids=True,
    )  # fmt: skip
    width = expected["input_ids"].shape[1]
    assert torch.equal(found.input_ids[:, :width], expected["input_ids"])
    assert found.token_type_ids is not None
    assert torch.equal(found.token_type_ids[:, :width], expected["token_type_ids"])
    assert found.input_ids.shape[1] == min(context, -(-width // 8) * 8)
    assert texts.truncated == (3 if context == 12 else 0)


@pytest.mark.parametrize("context", [64, 12, 5])
def test_a_decoders_pair_has_its_end_token_in_between(context: int, causal: PreTrainedTokenizerFast) -> None:
    texts = encode_texts(PAIRS, causal, context=context)
    assert texts.types is None
    for place, pair in enumerate(PAIRS):
        row = texts.tokens[texts.offsets[place] : texts.offsets[place + 1]].tolist()
        first, second = (causal(text)["input_ids"] for text in pair)
        assert len(row) == min(context, len(first) + len(second) + 1)
        cut = row.index(causal.eos_token_id)
        kept, other = row[:cut], row[cut + 1 :]
        assert kept == first[: len(kept)]
        assert other == second[: len(other)]
        if len(kept) < len(first):
            assert len(kept) in (len(other), len(other) + 1) or len(other) == len(second)
        if len(other) < len(second):
            assert len(other) in (len(kept), len(kept) - 1) or len(kept) == len(first)


def test_a_tokenizer_without_padding_pads_with_its_end(shared_data: Path) -> None:
    gpt2 = load_tokenizer(str(shared_data / "tokenizers" / "gpt2"))
    assert gpt2.pad_token_id is None
    assert padding_id(gpt2) == gpt2.eos_token_id
    found = encode_texts([("a cat",), ("",), ("the dog sat",)], gpt2, context=8).rows(np.arange(3))
    assert found.attention_mask.sum(1).tolist() == [2, 1, 3]
    assert set(found.input_ids[~found.attention_mask].tolist()) == {gpt2.eos_token_id}
    assert int(found.input_ids[1, 0]) == gpt2.eos_token_id


def test_rows_are_as_long_as_a_multiple_takes(masked: PreTrainedTokenizerFast) -> None:
    whole = [len(masked(text)["input_ids"]) for text in TEXTS]
    for multiple, expected in ((1, max(whole)), (8, -(-max(whole) // 8) * 8), (1000, 64)):
        texts = encode_texts([(text,) for text in TEXTS], masked, context=64, multiple=multiple)
        assert texts.rows(np.arange(4)).input_ids.shape == (4, expected)
        assert texts.rows(np.arange(0)).input_ids.shape == (1, min(64, multiple))


def test_what_is_cut_is_counted(masked: PreTrainedTokenizerFast) -> None:
    texts = encode_texts([(text,) for text in TEXTS], masked, context=8)
    whole = [len(masked(text)["input_ids"]) for text in TEXTS]
    assert texts.truncated == sum(size > 8 for size in whole)
    assert texts.lengths().tolist() == [min(size, 8) for size in whole]
    assert all(row[0] == masked.cls_token_id for row in texts.rows(np.arange(4)).input_ids)


LENGTHS = st.lists(st.integers(1, 64), min_size=1, max_size=40)


@given(
    lengths=LENGTHS,
    effective=st.integers(1, 20),
    micro=st.integers(1, 8),
    world=st.integers(1, 3),
    cost=st.integers(0, 200),
)
def test_any_split_has_the_same_examples_in_a_step(
    lengths: list[int], effective: int, micro: int, world: int, cost: int
) -> None:
    streams = [
        ExampleStream(
            made(lengths), effective_batch=effective, micro_batch=micro, seed=5, rank=rank, world_size=world,
            forward_cost=cost,
        )
        for rank in range(world)
    ]  # fmt: skip
    whole = ExampleStream(made(lengths), effective_batch=effective, micro_batch=99, seed=5)
    assert whole.steps_per_epoch == streams[0].steps_per_epoch == -(-len(lengths) // effective)
    seen: Counter[int] = Counter()
    for index in range(whole.steps_per_epoch):
        split = [stream.step(index) for stream in streams]
        assert len({len(batches) for batches in split}) == 1
        found = [batch for batches in split for batch in batches]
        real = [batch for batch in found if batch.example_ids[0] >= 0]
        ids = [i for batch in real for i in batch.example_ids.tolist()]
        assert sorted(ids) == sorted(i for batch in whole.step(index) for i in batch.example_ids.tolist())
        assert all(len(batch.example_ids) <= micro for batch in found)
        for batch in real:
            check_rows(batch, lengths)
        seen.update(ids)
    assert seen == Counter(range(len(lengths)))


def order(stream: ExampleStream, epoch: int) -> list[int]:
    steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
    return [int(batch.example_ids[0]) for step in steps for batch in stream.step(step)]


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides() -> None:
    def stream(seed: int) -> ExampleStream:
        return ExampleStream(made([5] * 30), effective_batch=1, micro_batch=1, seed=seed)

    first, again, other = stream(1), stream(1), stream(2)
    later = order(first, 3)
    assert order(again, 3) == later  # without having been at the epochs before
    assert order(first, 0) != later
    assert order(first, 0) == order(again, 0) != order(other, 0)
    assert sorted(later) == list(range(30))


def test_a_rank_without_an_example_gets_a_row_that_counts_for_nothing() -> None:
    for labels, is_nothing in (
        (np.array([1]), lambda label: label == IGNORED),
        (np.array([1.5], np.float32), torch.isnan),
    ):
        data = EncodedExamples(labels, numbers([5]), {"other": numbers([9])})
        (batch,) = ExampleStream(data, effective_batch=4, micro_batch=2, seed=0, rank=1, world_size=2).step(0)
        assert batch.example_ids.tolist() == [-1]
        assert bool(is_nothing(batch.labels[0]))
        assert batch.labels.dtype == torch.from_numpy(labels).dtype
        assert batch.num_tokens() == 0
        assert batch.attention_mask.sum() == 1
        assert batch.reading("other").input_ids.shape == (1, 8)


@given(lengths=LENGTHS, micro=st.integers(1, 8), world=st.integers(1, 3))
def test_evaluation_has_every_example_once_with_the_longest_first(
    lengths: list[int], micro: int, world: int
) -> None:
    data = made(lengths)
    ranks = [
        list(example_evaluation_batches(data, micro_batch=micro, rank=rank, world_size=world))
        for rank in range(world)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    found = [i for batches in ranks for batch in batches for i in batch.example_ids.tolist() if i >= 0]
    assert sorted(found) == list(range(len(lengths)))
    for batches in ranks:
        for batch in batches:
            if batch.example_ids[0] >= 0:
                check_rows(batch, lengths)
        own = [lengths[i] for batch in batches for i in batch.example_ids.tolist() if i >= 0]
        assert own == sorted(own, reverse=True)


def test_all_tokenizers_read_the_same_examples() -> None:
    lengths = [3, 60, 9, 30, 12]
    for batch in ExampleStream(made(lengths, others=True), effective_batch=5, micro_batch=2, seed=0).step(0):
        other = batch.reading("other")
        assert torch.equal(other.input_ids[:, 0], batch.example_ids)
        assert other.attention_mask.sum(1).tolist() == [lengths[::-1][i] for i in batch.example_ids]
        assert batch.reading("none").input_ids is batch.input_ids


def test_a_batch_moves_to_a_device_with_all_that_it_has() -> None:
    batch = next(iter(example_evaluation_batches(made([3, 9], others=True), micro_batch=2)))
    moved = batch.to(torch.device("meta"))
    assert {moved.input_ids.device.type, moved.labels.device.type, moved.example_ids.device.type} == {"meta"}
    assert moved.reading("other").attention_mask.device.type == "meta"
    assert batch.num_tokens() == 12


def positions(bounds: Sequence[tuple[int, int]], lengths: Sequence[int], cost: int) -> int:
    return sum((last - first) * lengths[first] + cost for first, last in bounds)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    most=st.integers(1, 9),
    cost=st.integers(0, 20),
)
def test_no_other_grouping_takes_fewer_positions(lengths: list[int], most: int, cost: int) -> None:
    lengths = sorted(lengths, reverse=True)
    size = len(lengths)
    found = cheapest_bounds(lengths, most=most, cost=cost)
    cuts = [
        [0, *(i + 1 for i, cut in enumerate(chosen) if cut), size]
        for chosen in product([0, 1], repeat=size - 1)
    ]
    groupings = [list(pairwise(cut)) for cut in cuts]
    allowed = [bounds for bounds in groupings if all(last - first <= most for first, last in bounds)]
    assert found in allowed
    assert positions(found, lengths, cost) == min(positions(bounds, lengths, cost) for bounds in allowed)


def test_dealing_by_length_takes_less_than_half_of_the_positions(shared_data: Path) -> None:
    """On SST-2, against one micro-batch a step that is padded to its longest example."""
    from stlm_kd.data.labelled.examples import LabelledSource, read_examples

    source = LabelledSource(path=str(shared_data / "glue" / "sst2" / "validation.jsonl.gz"))
    examples = read_examples(source)
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / "bert-base-uncased"))
    data = EncodedExamples(examples.labels, encode_texts(examples.texts, tokenizer, context=128))
    stream = ExampleStream(data, effective_batch=32, micro_batch=32, seed=0, forward_cost=0)
    lengths = data.own.lengths()
    used = plain = 0
    for index in range(stream.steps_per_epoch):
        batches = stream.step(index)
        used += sum(batch.input_ids.numel() for batch in batches)
        ids = [i for batch in batches for i in batch.example_ids.tolist()]
        plain += len(ids) * int(lengths[ids].max())
    assert lengths.sum() <= used < 0.65 * plain
