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
from stlm_kd.errors import DataError, MissingResourceError, ModelError
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.tokenizer import student_tokenizer
from stlm_kd.recipe import load

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


@pytest.fixture(scope="module")
def masked() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, size=320, masked=True)


def test_a_tokenizer_for_masked_models_has_four_special_tokens_at_the_front(
    masked: PreTrainedTokenizerFast, tokenizer: PreTrainedTokenizerFast
) -> None:
    roles = (masked.cls_token, masked.sep_token, masked.pad_token, masked.mask_token)
    assert roles == ("<|start|>", "<|end|>", "<|pad|>", "<|mask|>")
    assert sorted(masked.all_special_ids) == masked.convert_tokens_to_ids(list(roles)) == [0, 1, 2, 3]
    assert sorted(masked.get_vocab().values()) == list(range(320))
    # Then come the bytes and the merges of the causal one, as many as there is room for.
    assert masked.convert_ids_to_tokens(range(4, 320)) == tokenizer.convert_ids_to_tokens(range(2, 318))


def test_training_for_masked_models_twice_gives_the_same_tokenizer(masked: PreTrainedTokenizerFast) -> None:
    again = train_tokenizer(iter(TEXTS), size=320, masked=True)
    assert tokenizer_identity(again) == tokenizer_identity(masked)


@pytest.mark.parametrize("text", ["The otter", " two  spaces\n\ttab ", "日本語 naïve 🦊", "\x00\x7f", ""])
def test_a_tokenizer_for_masked_models_puts_any_text_between_start_and_end(
    masked: PreTrainedTokenizerFast, text: str
) -> None:
    start, *ids, end = masked(text)["input_ids"]
    assert (start, end) == (masked.cls_token_id, masked.sep_token_id)
    assert ids == masked(text, add_special_tokens=False)["input_ids"]
    assert masked.decode(ids) == text
    pair = masked(text, "saw")["input_ids"]
    assert pair == [start, *ids, end, *masked("saw")["input_ids"][1:]]


def test_a_mask_in_a_text_takes_the_place_of_a_word_and_its_space(masked: PreTrainedTokenizerFast) -> None:
    ids = masked("The otter saw")["input_ids"]
    word = masked(" otter", add_special_tokens=False)["input_ids"]
    begin = ids.index(word[0])
    expected = [*ids[:begin], masked.mask_token_id, *ids[begin + len(word) :]]
    assert masked("The <|mask|> saw")["input_ids"] == expected


def test_a_tokenizer_for_masked_models_is_saved_and_loaded_whole(
    masked: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    masked.save_pretrained(tmp_path)
    for loaded in (load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer_identity(loaded) == tokenizer_identity(masked)
        assert loaded("The <|mask|> saw", "it").data == masked("The <|mask|> saw", "it").data
        assert set(loaded("The otter")) == {"input_ids", "attention_mask"}


def test_a_size_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ModelError, match="at least 258"):
        train_tokenizer(TEXTS, size=257)
    with pytest.raises(ModelError, match="at least 260"):
        train_tokenizer(TEXTS, size=259, masked=True)


def test_too_little_text_for_the_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"^size: 5000 found, but the text yields only \d+ tokens"):
        train_tokenizer(TEXTS, size=5000)


def test_a_run_says_by_its_key_that_the_text_is_too_little_for_the_size(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("few words\n")
    recipe = load("sample-teacher-gpt2", [f"data.train={tmp_path}/a.txt"])
    with pytest.raises(DataError, match=r"^student\.tokenizer\.size: 512 found, but the text yields only"):
        student_tokenizer(recipe, RunContext(tmp_path / "runs"))


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


@pytest.mark.parametrize(
    ("roles", "ends"),
    [
        ({"bos": "a", "eos": "b", "cls": "c", "sep": "d"}, "ab"),
        ({"eos": "b", "cls": "c", "sep": "d"}, "cb"),
        ({"bos": "a", "sep": "d"}, "ad"),
        ({"cls": "c", "sep": "d"}, "cd"),
        ({"eos": "b"}, "bb"),
        ({"sep": "d"}, "dd"),
    ],
    ids=lambda value: "-".join(value),
)
def test_a_document_stands_between_bos_or_cls_and_eos_or_sep(roles: dict[str, str], ends: str) -> None:
    tokenizer = with_roles(roles)
    assert document_ends(tokenizer) == tuple(tokenizer.convert_tokens_to_ids(list(ends)))


@pytest.mark.parametrize(
    "roles", [{}, {"bos": "a"}, {"cls": "c", "mask": "e"}], ids=lambda roles: "-".join(roles)
)
def test_a_tokenizer_without_eos_and_sep_is_refused(roles: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"no eos token and no sep token.*set eos_token \(sep_token for"):
        document_ends(with_roles(roles))


@pytest.mark.parametrize("role", ["cls", "sep"])
def test_the_hash_sees_cls_and_sep_where_they_are_a_documents_ends(role: str) -> None:
    without = with_roles({"eos": "b"} if role == "cls" else {"bos": "a"})
    before = tokenizer_hash(without)
    setattr(without, f"{role}_token", "c")
    first = tokenizer_hash(without)
    setattr(without, f"{role}_token", "d")
    assert len({before, first, tokenizer_hash(without)}) == 3


def test_the_hash_sees_whether_special_tokens_in_a_text_are_split() -> None:
    one, other = (train_tokenizer(TEXTS, size=300) for _ in range(2))
    other.split_special_tokens = True
    assert tokenizer_hash(one) != tokenizer_hash(other)


def with_roles(roles: dict[str, str]) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer(TEXTS, size=300)
    for role in ("bos", "eos", "cls", "sep", "mask"):
        setattr(tokenizer, f"{role}_token", roles.get(role))
    return tokenizer


def test_a_missing_folder_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match="no such folder") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_an_id_that_is_not_cached_is_said_in_one_line_when_offline() -> None:
    with pytest.raises(
        MissingResourceError, match=r"nobody/nothing: not in the cache, and offline"
    ) as caught:
        load_tokenizer("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_draws_its_tokens_is_told_to_stop_and_prints_nothing_of_its_configuration(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    train_tokenizer(["the cat sat on the mat"] * 20, size=268).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    whole["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama\x1b[2J"}))
    loaded = load_tokenizer(str(tmp_path))
    assert len({tuple(loaded("the cat sat on the mat")["input_ids"]) for _ in range(20)}) == 1
    said = capfd.readouterr()
    assert "dropout" in caplog.text and "\x1b" not in said.out + said.err + caplog.text


def test_a_broken_tokenizer_file_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    whole = (tmp_path / "tokenizer.json").read_text()
    unknown_type = json.dumps({**json.loads(whole), "model": {"type": "?"}})
    model = json.loads(whole)["model"]
    odd_ids = [
        json.dumps({**json.loads(whole), "model": {**model, "vocab": {"a": id}}}) for id in ("0", None)
    ]
    for content, reason in (
        (whole[: len(whole) // 2], "EOF"),
        ("{}", "Model missing"),
        (unknown_type, "data did not match"),
        (odd_ids[0], "invalid type: string"),
        (odd_ids[1], "invalid type: null"),
    ):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(
            ModelError, match=rf"tokenizer\.json: cannot be read as a tokenizer \({reason}.*\); fe"
        ):
            load_tokenizer(str(tmp_path))
    with pytest.raises(MissingResourceError, match=r"tokenizer\.json: a file; expected a folder"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text(whole)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"the tokenizer cannot be loaded \(AttributeError"):
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


@pytest.mark.parametrize("name", ["bert-base-cased", "bert-base-uncased"])
def test_berts_documents_stand_between_cls_and_sep(shared_data: Path, name: str) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizers" / name))
    ids = tokenizer("The otter slept .")["input_ids"]
    assert document_ends(tokenizer) == (ids[0], ids[-1]) == (101, 102)
