"""Packed rows against a slow formula and a chunk-by-chunk best fit, in memory and in files."""

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.batch import IGNORED
from stlm_kd.data.corpus import pack_sources, prepare
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.text import row_index, store_builder
from stlm_kd.data.text.packing import plan
from stlm_kd.data.text.row_index import RowIndex
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import TokenStore
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from tests.support.slow_packing import cut, pack
from tests.support.stores import store_of

CONTEXT = 24
Lengths = st.lists(st.integers(1, CONTEXT), max_size=200).map(lambda lengths: np.array(lengths, np.int64))


def assert_as_by_the_formula(index: RowIndex, store: TokenStore, context: int, *, wrapped: bool) -> None:
    begins, lengths, goes_on = cut(store.offsets, context, overlap=2 * wrapped)
    rows = pack(lengths, context)
    assert np.array_equal(index.starts, rows.starts)
    assert np.array_equal(index.begins, begins[rows.chunks])
    assert np.array_equal(index.lengths, lengths[rows.chunks])
    assert index.num_tokens == lengths.sum()
    if not wrapped:
        labels = np.full(len(begins), IGNORED)
        labels[goes_on] = store.tokens.take((begins + lengths)[goes_on])
        assert index.labels_after is not None and np.array_equal(index.labels_after, labels[rows.chunks])


def row_sums(lengths: np.ndarray, context: int) -> list[int]:
    packed = plan(np.bincount(lengths, minlength=context + 1))
    rows, _ = packed.places(np.arange(len(lengths)))
    sums = np.bincount(rows, weights=-np.sort(-lengths), minlength=sum(found.number for found in packed.rows))
    return sums.astype(int).tolist()


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
    found = [zip(*arrays, strict=True) for arrays in row_index.chunks_of(offsets, context, overlap=overlap)]
    assert [chunk for block in found for chunk in block] == expected
    assert [*zip(*cut(offsets, context, overlap=overlap), strict=True)] == expected


@settings(deadline=None, max_examples=250)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=120),
    context=st.integers(3, 30),
    wrapped=st.booleans(),
    block=st.integers(1, 40),
)
def test_an_index_made_in_blocks_has_the_rows_of_the_formula(
    lengths: list[int], context: int, wrapped: bool, block: int
) -> None:
    store = store_of([list(range(2, 2 + length)) for length in lengths])
    with patch.object(row_index, "_BLOCK", block):
        index = RowIndex.of(store, context, wrapped=wrapped)
    assert_as_by_the_formula(index, store, context, wrapped=wrapped)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the quiet otter saw a lantern"], size=270)


Shapes = st.one_of(
    st.sampled_from(["", "o"]),
    st.integers(1, 40).map(lambda number: "<|endoftext|>" * number),
    st.integers(30, 90).map(lambda number: ("otter " * number)[:number]),
)


@settings(deadline=None, max_examples=12)
@given(texts=st.lists(Shapes, min_size=1, max_size=20), context=st.integers(3, 20), wrapped=st.booleans())
@example(texts=[""], context=3, wrapped=True)
@example(texts=["<|endoftext|>" * 9], context=4, wrapped=False)
def test_documents_of_any_shape_have_the_rows_of_the_formula_in_files(
    texts: list[str], context: int, wrapped: bool, tokenizer: PreTrainedTokenizerFast
) -> None:
    (end,) = tokenizer("<|endoftext|>")["input_ids"]
    with tempfile.TemporaryDirectory() as folder, patch.object(store_builder, "SHARD_IDS", 50):
        store = build_store(texts, tokenizer, Path(folder) / "store")
        RowIndex.write(store.folder / "rows", store, context, wrapped=wrapped)
        index = RowIndex.open(store.folder / "rows", store, context, wrapped=wrapped)
        assert [store.document(i).tolist() for i in range(len(texts))] == [
            [end, *tokenizer(text)["input_ids"], end] for text in texts
        ]
        assert_as_by_the_formula(index, store, context, wrapped=wrapped)


@pytest.mark.parametrize(("context", "wrapped"), [(512, False), (128, True)])
def test_wikitext_has_the_rows_of_the_formula_and_they_are_nearly_full(
    shared_data: Path, tmp_path: Path, context: int, wrapped: bool
) -> None:
    source = Source(path=str(shared_data / "lm" / "wikitext-2" / "valid.txt.gz"))
    prepared = prepare([source], load_tokenizer(str(shared_data / "tokenizers" / "gpt2")), tmp_path)
    (part,) = pack_sources(prepared, context, wrapped=wrapped)
    (folder,) = part.store.folder.glob("rows-*")
    index = RowIndex.open(folder, part.store, context, wrapped=wrapped)
    assert_as_by_the_formula(index, part.store, context, wrapped=wrapped)
    assert part.num_tokens / (len(part) * context) >= 0.99


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
    assert plan(np.zeros(9, np.int64)).rows == ()


def test_hundreds_of_thousands_of_short_chunks_leave_less_than_a_thousandth_unused() -> None:
    lengths = np.random.default_rng(0).geometric(1 / 100, 300_000).clip(max=512)
    assert lengths.sum() / (512 * len(row_sums(lengths, 512))) > 0.999
