"""Token stores against the tokenizer itself, and stores that are not whole."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.artifacts.hashing import SEAL, sealed
from stlm_kd.data.batches import PackedRows
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.text import store_builder, tokenising
from stlm_kd.data.text.store_builder import build_store
from stlm_kd.data.token_store import FORMAT_VERSION, ShardedIds, TokenStore, joined
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import DataError, MissingResourceError, ModelError

TEXTS = ["The otter slept .", "naïve 日本 text", "x", "The heron saw the otter and the otter saw it ." * 30]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, size=280)


@pytest.fixture
def store(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> TokenStore:
    return build_store(iter(TEXTS), tokenizer, tmp_path / "store")


def test_a_store_holds_what_the_tokenizer_says_between_start_and_eos(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert store.num_documents == len(TEXTS)
    for index, text in enumerate(TEXTS):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert store.document(index).tolist() == [0, *ids, 0]
    assert store.document_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert store.num_tokens == sum(len(store.document(i)) for i in range(len(TEXTS)))
    assert (store.vocab_size, store.eos_id) == (280, 0)


def test_a_store_for_masked_models_holds_documents_between_cls_and_sep(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=280, masked=True)
    store = build_store(TEXTS, tokenizer, tmp_path / "store")
    for index, text in enumerate(TEXTS):
        assert store.document(index).tolist() == tokenizer(text)["input_ids"]
    assert (store.start_id, store.eos_id) == (tokenizer.cls_token_id, tokenizer.sep_token_id) == (0, 1)


def test_truncation_and_padding_that_a_tokenizer_has_set_do_not_count(
    store: TokenStore, tmp_path: Path
) -> None:
    cutting = train_tokenizer(TEXTS, size=280)
    cutting(TEXTS, truncation=True, max_length=3, padding="max_length")
    assert cutting.backend_tokenizer.truncation and cutting.backend_tokenizer.padding
    assert np.array_equal(build_store(TEXTS, cutting, tmp_path / "other").tokens, store.tokens)


def test_batches_of_texts_change_nothing(
    store: TokenStore,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tokenising, "BATCH_CHARACTERS", 10)
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 2)
    other = build_store(TEXTS, tokenizer, tmp_path / "other")
    assert np.array_equal(other.tokens, store.tokens) and np.array_equal(other.offsets, store.offsets)


def bytes_of(store: TokenStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of ids are full with forty, batches of texts with two."""
    monkeypatch.setattr(store_builder, "SHARD_IDS", 40)
    monkeypatch.setattr(tokenising, "BATCH_DOCUMENTS", 2)


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=25),
    shard_ids=st.integers(20, 90),
    batch=st.integers(1, 9),
    data=st.data(),
)
def test_several_files_of_ids_are_read_as_one_array(
    lengths: list[int], shard_ids: int, batch: int, data: st.DataObject, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts = [("otter " * length)[:length] for length in lengths]
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(store_builder, "SHARD_IDS", shard_ids),
        patch.object(tokenising, "BATCH_DOCUMENTS", batch),
    ):
        store = build_store(texts, tokenizer, Path(folder) / "store")
        documents = [[0, *tokenizer(text)["input_ids"], 0] for text in texts]
        shards, size = [[]], 0
        for document in documents:  # by the definition, one document at a time
            if size >= shard_ids:
                shards, size = [*shards, []], 0
            shards[-1] += document
            size += len(document)
        files = sorted(store.folder.glob("tokens-*.bin"))
        assert [np.fromfile(file, "<u2").tolist() for file in files] == shards
        ids = np.concatenate(shards)
        assert store.tokens[:].tolist() == ids.tolist() and len(store.tokens) == store.num_tokens == len(ids)
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(ids))] * 2)))
        assert store.tokens[begin:end].tolist() == ids[begin:end].tolist()
        places = np.array(data.draw(st.lists(st.integers(-5, len(ids) + 9))), np.int64)
        assert store.tokens.take(places, mode="clip").tolist() == ids.take(places, mode="clip").tolist()
        assert [store.document(index).tolist() for index in range(len(texts))] == documents
        assert (store.start_id, store.tokens[-1]) == (0, 0)


@pytest.mark.parametrize("rank", [1, 2])
def test_rows_of_several_files_are_those_of_one(
    rank: int, small: None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, store: TokenStore
) -> None:
    sharded = build_store(TEXTS * 3, tokenizer, tmp_path / "sharded")
    with patch.object(store_builder, "SHARD_IDS", 1 << 28):
        whole = build_store(TEXTS * 3, tokenizer, tmp_path / "whole")
    rows, expected = (PackedRows(one, 16, wrapped=rank == 2) for one in (sharded, whole))
    assert isinstance(sharded.tokens, ShardedIds) and isinstance(whole.tokens, np.ndarray)
    assert torch.equal(rows.batch(range(len(rows))).input_ids, expected.batch(range(len(rows))).input_ids)
    assert torch.equal(rows.batch(range(len(rows))).labels, expected.batch(range(len(rows))).labels)
    assert all(map(np.array_equal, joined([sharded], most=50), joined([whole], most=50)))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 9, 40, 41, 42, 50, 10_000])
def test_the_most_tokens_are_reached_exactly_and_the_last_document_is_cut(
    most: int, small: None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    documents = [[0, *tokenizer(text)["input_ids"], 0] for text in TEXTS]
    store = build_store(TEXTS, tokenizer, tmp_path / "store", most_tokens=most)
    expected, room = [], most
    for document in documents:
        if room:
            expected.append(document if len(document) <= room else [*document[: room - 1], 0])
            room -= len(expected[-1])
    assert store.num_tokens == min(most, sum(map(len, documents)))
    assert [store.document(index).tolist() for index in range(store.num_documents)] == expected
    kept = tokenizer.decode(expected[-1][1:-1])
    assert store.num_bytes <= sum(len(text.encode()) for text in TEXTS[: len(expected) - 1]) + len(
        kept.encode()
    )
    if kept.isascii():
        assert store.document_hashes[-1] == text_hash(kept)


def test_an_interrupted_build_goes_on_from_its_finished_files(
    small: None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"{text} {number}" for number in range(9) for text in TEXTS]
    expected = bytes_of(build_store(texts, tokenizer, tmp_path / "expected"))
    partial, taken = tmp_path / "store.partial", []

    def interrupted(number: int) -> Iterator[str]:
        yield from texts[:number]
        raise KeyboardInterrupt

    def counted() -> Iterator[str]:
        for text in texts:
            taken.append(tokenised())
            yield text

    def tokenised() -> int:
        return sum(path.stat().st_size for path in partial.glob("tokens-*.bin"))

    for number in (1, 12, 20, 33):
        with pytest.raises(KeyboardInterrupt):
            build_store(interrupted(number), tokenizer, tmp_path / "store", partial=partial)
        assert partial.exists() == (number > 1)
    store = build_store(counted(), tokenizer, tmp_path / "store", partial=partial)
    assert bytes_of(store) == expected and not partial.exists() and not caplog.text
    assert taken[0] == taken[15] > 1000  # nothing was written while the finished documents were read


@pytest.mark.parametrize("file", ["tokens-00000.bin", "hashes.bin", "progress.json"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_damaged_unfinished_files_are_made_again_with_a_note(
    file: str,
    damage: str,
    small: None,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts, partial = TEXTS * 9, tmp_path / "store.partial"
    expected = bytes_of(build_store(texts, tokenizer, tmp_path / "expected"))

    def interrupted() -> Iterator[str]:
        yield from texts[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(interrupted(), tokenizer, tmp_path / "store", partial=partial)
    content = bytearray((partial / file).read_bytes())
    content[40] ^= 1
    (partial / file).unlink()
    if damage == "flip":
        (partial / file).write_bytes(content)
    assert bytes_of(build_store(texts, tokenizer, tmp_path / "store", partial=partial)) == expected
    assert ("all of it is tokenised" in caplog.text) == ((file, damage) != ("progress.json", "remove"))


def test_another_text_than_that_of_the_unfinished_files_is_refused_once(
    small: None, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def interrupted() -> Iterator[str]:
        yield from TEXTS * 5
        raise KeyboardInterrupt

    options = {"place": "a.txt", "partial": tmp_path / "store.partial"}
    with pytest.raises(KeyboardInterrupt):
        build_store(interrupted(), tokenizer, tmp_path / "store", **options)
    others = [f"{text} more" for text in TEXTS * 5]
    with pytest.raises(DataError, match=r"a\.txt: its text is not what it was when a part of it"):
        build_store(others, tokenizer, tmp_path / "store", **options)
    assert build_store(others, tokenizer, tmp_path / "store", **options).num_documents == 20


def test_ends_inside_documents_are_counted(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    assert store.ends_inside == 0
    texts = ["one<|endoftext|>two<|endoftext|>", "<|endoftext|>", "three", "<|endoftext|"]
    assert build_store(texts, tokenizer, tmp_path / "other").ends_inside == 3
    masked = train_tokenizer(TEXTS, size=280, masked=True)
    texts = ["one<|start|>", "<|end|>two<|end|>", "<|endoftext|><|pad|>"]
    assert build_store(texts, masked, tmp_path / "masked").ends_inside == 3


def test_hashes_are_of_the_texts_in_their_order(store: TokenStore) -> None:
    assert store.document_hashes.tolist() == [text_hash(text) for text in TEXTS]


def test_ids_take_two_bytes_and_cannot_be_written_to(store: TokenStore) -> None:
    assert store.tokens.dtype == np.uint16
    assert (store.folder / "tokens-00000.bin").stat().st_size == 2 * store.num_tokens
    with pytest.raises(ValueError, match="read-only"):
        store.tokens[0] = 1


def test_a_vocabulary_beyond_two_bytes_takes_four(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    large = train_tokenizer(TEXTS, size=280)
    large.add_tokens([f"<extra-{number}>" for number in range(65_536 - 280)])
    assert build_store(["a"], large, tmp_path / "exactly").tokens.dtype == np.uint16
    large.add_tokens(["<one-more>"])
    store = build_store(["a <one-more>"], large, tmp_path / "beyond")
    assert store.tokens.dtype == np.uint32
    assert 65_536 in store.tokens.tolist()


def test_opening_again_gives_the_same(store: TokenStore) -> None:
    again = TokenStore.open(store.folder)
    assert np.array_equal(again.tokens, store.tokens)
    assert np.array_equal(again.document_bytes, store.document_bytes)
    assert again.num_bytes == sum(len(text.encode()) for text in TEXTS)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "offsets.bin", "bytes.bin", "hashes.bin"])
def test_a_file_cut_short_is_named_with_both_sizes(store: TokenStore, name: str) -> None:
    path = store.folder / name
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=rf"{name} has {size - 2:,} bytes, expected {size:,}; delete"):
        TokenStore.open(store.folder)


def test_a_missing_file_is_named(store: TokenStore) -> None:
    (store.folder / "bytes.bin").unlink()
    with pytest.raises(DataError, match=r"bytes\.bin has 0 bytes"):
        TokenStore.open(store.folder)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "offsets.bin", "bytes.bin", "hashes.bin"])
def test_a_file_overwritten_with_zeros_is_refused(store: TokenStore, name: str) -> None:
    path = store.folder / name
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=f"{name}: changed since the text was tokenised; delete the folder"):
        TokenStore.open(store.folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "format version"),
        ({"dtype": "<u4"}, "the hash that is stated in it"),
        ({"files": {}}, "the hash that is stated in it"),
        ({"more": 1}, "the hash that is stated in it"),
        (sealed({"format_version": FORMAT_VERSION}), "missing 10 required"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    store: TokenStore, change: dict[str, object], message: str
) -> None:
    path = store.folder / "manifest.json"
    path.write_text(json.dumps(change if SEAL in change else json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        TokenStore.open(store.folder)


def test_a_manifest_that_is_not_json_is_refused(store: TokenStore) -> None:
    (store.folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        TokenStore.open(store.folder)


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token store"):
        TokenStore.open(tmp_path)


def test_no_text_builds_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        build_store([], tokenizer, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def interrupted() -> Iterator[str]:
        yield "The otter"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(interrupted(), tokenizer, tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_there_is_not_built_over(
    store: TokenStore, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(DataError, match="the folder exists already"):
        build_store(["other"], tokenizer, store.folder)
    assert TokenStore.open(store.folder).num_documents == len(TEXTS)


def test_two_that_build_the_same_store_at_once_both_get_it(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def slow() -> Iterator[str]:
        build_store(TEXTS, tokenizer, tmp_path / "store")
        yield from TEXTS

    assert build_store(slow(), tokenizer, tmp_path / "store").num_documents == len(TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_another_store_that_appears_meanwhile_is_not_taken_for_this_one(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    def slow() -> Iterator[str]:
        build_store(["other"], tokenizer, tmp_path / "store")
        yield from TEXTS

    with pytest.raises(MissingResourceError, match="cannot be written"):
        build_store(slow(), tokenizer, tmp_path / "store")


def test_a_folder_that_cannot_be_made_is_reported(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingResourceError, match="in the way is a file"):
        build_store(TEXTS, tokenizer, tmp_path / "file" / "store")


def test_a_tokenizer_without_eos_and_sep_cannot_build(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=270)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no eos"):
        build_store(TEXTS, tokenizer, tmp_path / "store")
