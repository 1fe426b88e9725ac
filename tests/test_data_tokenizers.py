"""Tokenizers: training is exact and repeatable, loading is faithful, and what cannot serve is refused."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import (
    document_ends,
    load_tokenizer,
    same_vocabulary,
    tokenizer_hash,
    tokenizer_identity,
    train_tokenizer,
)
from stlm_kd.errors import DataError, EnvironmentFault, ModelError

TEXTS = [
    f"The {who} {did} the {what} near the old {where} .\n"
    for who in ("heron", "otter", "miller", "captain")
    for did in ("saw", "mended", "carried")
    for what in ("lantern", "kettle", "ladder")
    for where in ("river", "garden", "harbour", "meadow")
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, size=320)


def test_training_gives_the_size_that_was_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 320
    assert sorted(tokenizer.get_vocab().values()) == list(range(320))


def test_training_twice_gives_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(iter(TEXTS), size=320)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)


@pytest.mark.parametrize("text", ["The otter", " two  spaces\n\ttab ", "日本語 naïve 🦊", "\x00\x7f", ""])
def test_any_text_is_spelt_and_read_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_trained_tokenizer_is_saved_and_loaded_whole(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert same_vocabulary(loaded, tokenizer)
        assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
        assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (
            "<|endoftext|>", "<|endoftext|>", "<|pad|>")  # fmt: skip


def test_a_size_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 258"):
        train_tokenizer(TEXTS, size=257)


def test_too_little_text_for_the_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"5000 tokens: the text yields only \d+"):
        train_tokenizer(TEXTS, size=5000)


def test_a_vocabulary_is_the_same_where_every_id_means_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    assert same_vocabulary(tokenizer, train_tokenizer(TEXTS, size=320))
    assert not same_vocabulary(tokenizer, train_tokenizer(TEXTS, size=319))
    assert not same_vocabulary(tokenizer, train_tokenizer([t.upper() for t in TEXTS], size=320))


def test_the_hash_sees_steps_and_ends_but_no_truncation(tokenizer: PreTrainedTokenizerFast) -> None:
    before = tokenizer_hash(tokenizer)
    tokenizer("The otter saw the mill", truncation=True, max_length=3, padding="max_length")
    assert tokenizer_hash(tokenizer) == before
    other = train_tokenizer(TEXTS, size=320)
    other.eos_token = "<|pad|>"
    assert tokenizer_hash(other) != before


@pytest.mark.parametrize("role", ["unk", "pad", "sep", "cls", "mask"])
def test_a_role_is_in_the_identity_and_not_in_the_hash_of_documents(role: str) -> None:
    one, other = (train_tokenizer(TEXTS, size=320) for _ in range(2))
    setattr(other, f"{role}_token", None if role == "pad" else "a")
    assert tokenizer_hash(one) == tokenizer_hash(other)
    assert tokenizer_identity(one) != tokenizer_identity(other)


def test_a_document_starts_with_bos_or_else_eos() -> None:
    tokenizer = train_tokenizer(TEXTS, size=300)
    assert document_ends(tokenizer) == (0, 0)
    tokenizer.eos_token = "<|pad|>"
    assert document_ends(tokenizer) == (0, 1)
    tokenizer.bos_token = None
    assert document_ends(tokenizer) == (1, 1)


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = train_tokenizer(TEXTS, size=300)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no eos token"):
        document_ends(tokenizer)


def test_a_missing_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no such folder") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_an_id_that_is_not_cached_is_said_in_one_line_when_offline() -> None:
    with pytest.raises(EnvironmentFault, match=r"nobody/nothing.*go online once") as caught:
        load_tokenizer("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_broken_tokenizer_file_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizers_own_code_runs_only_when_trusted(tmp_path: Path) -> None:
    config = {"auto_map": {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('its code ran')\n")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "llama-2", "phi-3-mini", "bert-base-cased"])
def test_real_tokenizers_split_text_as_their_files_say(shared_data: Path, name: str) -> None:
    folder = shared_data / "tokenizers" / name
    filed = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = load_tokenizer(str(folder))
    for text in (" Two  spaces", "naïve 日本 \n\n 3.14", "It's<unk>here"):
        expected = filed.encode(text, add_special_tokens=False).ids
        assert loaded(text, add_special_tokens=False)["input_ids"] == expected


def test_a_llama_class_does_not_override_the_file(shared_data: Path, tmp_path: Path) -> None:
    shutil.copytree(shared_data / "tokenizers" / "llama-2", tmp_path / "llama", copy_function=shutil.copyfile)
    path = tmp_path / "llama" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    filed = Tokenizer.from_file(str(tmp_path / "llama" / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "llama"))
    text = " Two  spaces and  more"
    assert (
        loaded(text, add_special_tokens=False)["input_ids"]
        == filed.encode(text, add_special_tokens=False).ids
    )
    assert document_ends(loaded) == (1, 2)
