"""Token stores against the tokenizer itself, and stores that are not whole."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from stlm_kd.artifacts.hashing import SEAL, sealed
from stlm_kd.data import token_store as tokens_module
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.token_store import FORMAT_VERSION, TokenStore, build_store
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
    monkeypatch.setattr(tokens_module, "_BATCH_CHARACTERS", 10)
    monkeypatch.setattr(tokens_module, "_BATCH_DOCUMENTS", 2)
    other = build_store(TEXTS, tokenizer, tmp_path / "other")
    assert np.array_equal(other.tokens, store.tokens) and np.array_equal(other.offsets, store.offsets)


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
    assert (store.folder / "tokens.bin").stat().st_size == 2 * store.num_tokens
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


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "bytes.bin", "hashes.bin"])
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


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "bytes.bin", "hashes.bin"])
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
        (sealed({"format_version": FORMAT_VERSION}), "missing 8 required"),
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
    with pytest.raises(MissingResourceError, match="cannot be written"):
        build_store(TEXTS, tokenizer, tmp_path / "file" / "store")


def test_a_tokenizer_without_eos_and_sep_cannot_build(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS, size=270)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no eos"):
        build_store(TEXTS, tokenizer, tmp_path / "store")
