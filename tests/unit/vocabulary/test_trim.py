"""Tokenizers trimmed to some of their own tokens."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from stlm_kd.adaptation.initialisers import new_rows
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import ModelError
from stlm_kd.vocabulary.mapping import map_vocabulary
from stlm_kd.vocabulary.pretokens import count_pretokens, count_tokens
from stlm_kd.vocabulary.token_bytes import read_vocabulary
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.tokenizer_kinds import TEXTS, byte_level, llama, unigram, word_piece


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama-2-like: no pre-tokenizer, ``▁`` for spaces, byte fallback, several merges of one token."""
    pieces = ["▁", *"catshen", "th", "he", "▁t", "▁th", "▁the", "at", "▁c", "▁cat", "ca", "cat", "日"]
    special = ["<unk>", "<s>", "</s>"]
    vocab = {token: i for i, token in enumerate([*special, *(f"<0x{i:02X}>" for i in range(256)), *pieces])}
    pairs = [
        "t h",
        "h e",
        "▁ t",
        "▁t h",
        "▁ th",
        "▁th e",
        "▁t he",
        "a t",
        "▁ c",
        "▁c at",
        "c a",
        "c at",
        "ca t",
    ]
    merges = [tuple(pair.split()) for pair in pairs]
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], int]] = {
    "byte-level": (byte_level, 270),
    "SentencePiece": (sentencepiece, 268),
    "Unigram": (unigram, 45),
    "WordPiece": (word_piece, 60),
}

_WHOLE = {kind: make() for kind, (make, _) in KINDS.items()}


def _begins_a_word(text: str) -> bool:
    return not text[:1].isspace()


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """A tokenizer and its trimmed one."""
    make, size = KINDS[request.param]
    whole = make()
    return whole, trim_tokenizer(whole, TEXTS, size)


def test_every_row_is_the_teachers_own(
    pair: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    whole, trimmed = pair
    teacher = llama(len(whole)).to(torch.bfloat16)
    own, ids = whole.get_vocab(), trimmed.get_vocab()
    assert sorted(ids.values()) == list(range(len(trimmed))) and set(ids) < set(own)
    old = torch.tensor([own[token] for token in sorted(ids, key=ids.__getitem__)])
    made = new_rows(teacher, whole, trimmed, "subword-mean", seed=0)
    assert made.head is not None
    assert torch.equal(made.embedding, teacher.get_input_embeddings().weight[old])
    assert torch.equal(made.head, teacher.get_output_embeddings().weight[old])
    assert made.copied.tolist() == list(range(len(trimmed))) and made.is_exact


def test_special_tokens_keep_their_roles(
    pair: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    whole, trimmed = pair
    assert trimmed.special_tokens_map == whole.special_tokens_map
    assert trimmed.convert_ids_to_tokens(trimmed("").input_ids) == whole.convert_ids_to_tokens(
        whole("").input_ids
    )


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_changed_where_nothing_is_left_out(kind: str) -> None:
    whole = KINDS[kind][0]()
    same = trim_tokenizer(whole, TEXTS, len(whole))
    assert tokenizer_identity(same) == tokenizer_identity(whole)


@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece"])
def test_merges_are_closed_and_produce_every_token(kind: str) -> None:
    make, size = KINDS[kind]
    whole = make()
    for smaller in range(size, len(whole), 3):
        trimmed = trim_tokenizer(whole, TEXTS, smaller)
        model = json.loads(trimmed.backend_tokenizer.to_str())["model"]
        merges = [(a, b) for a, b in model["merges"]]
        assert all({a, b, a + b} <= set(model["vocab"]) for a, b in merges)
        bytes_and_special = {*trimmed.all_special_tokens, *(f"<0x{i:02X}>" for i in range(256))}
        for token in set(model["vocab"]) - bytes_and_special:
            assert [one.value for one in trimmed.backend_tokenizer.model.tokenize(token)] == [token]


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_of_any_script_is_read_back(text: str) -> None:
    for trimmed in _ROUND_TRIP:
        ids = trimmed(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert trimmed.decode(ids, clean_up_tokenization_spaces=False) == text


_ROUND_TRIP = [trim_tokenizer(byte_level(), TEXTS, 265), trim_tokenizer(byte_level(), [], 257)]


@given(st.lists(st.sampled_from(["the", "cat", "hat", "én", " ", "日", "q", "😀"]), max_size=20))
@settings(max_examples=100, deadline=None)
def test_a_byte_fallback_spells_what_has_no_token_left(parts: list[str]) -> None:
    text = "".join(parts)
    whole, trimmed = _FALLBACK
    ids = [one(text, add_special_tokens=False).input_ids for one in (whole, trimmed)]
    assert trimmed.decode(ids[1]) == whole.decode(ids[0])
    assert trimmed.unk_token_id not in ids[1]


_FALLBACK = (sentencepiece(), trim_tokenizer(sentencepiece(), TEXTS, 263))


def test_a_token_goes_before_another_that_saves_more_pieces() -> None:
    """Counted by hand: ``▁cat`` three times, ``▁the`` once."""
    kept = set(trim_tokenizer(sentencepiece(), ["the", *["cat"] * 3], 266).get_vocab())
    always = {"<unk>", "<s>", "</s>", "▁", *(f"<0x{i:02X}>" for i in range(256))}
    assert kept == always | {"c", "a", "t", "at", "▁c", "▁cat"}


def test_added_tokens_stay_and_special_ones_without_a_role_go_first() -> None:
    whole = byte_level()
    whole.add_tokens(["<extra>"])
    whole.add_special_tokens({"pad_token": "<pad>"})
    whole.add_tokens(["<reserved>"], special_tokens=True)
    trimmed = trim_tokenizer(whole, TEXTS, len(whole) - 1)
    assert set(whole.get_vocab()) - set(trimmed.get_vocab()) == {"<reserved>"}
    assert trimmed.convert_ids_to_tokens(trimmed("a<extra><pad>").input_ids) == ["a", "<extra>", "<pad>"]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (301, "^size: 301 found; expected at most 300, the number of tokens of "),
        (256, "^size: 256 found; expected at least 257: the special tokens, bytes and characters of "),
    ],
)
def test_sizes_that_cannot_be_are_refused(size: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        trim_tokenizer(byte_level(), TEXTS, size)


def test_models_without_merges_or_of_words_are_refused() -> None:
    spelled = byte_level()
    state = json.loads(spelled.backend_tokenizer.to_str())
    state["model"]["merges"] = []
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    with pytest.raises(ModelError, match="a BPE model without merges, from which no tokens can be chosen"):
        trim_tokenizer(bare, TEXTS, 260)
    lacking = word_piece()
    state = json.loads(lacking.backend_tokenizer.to_str())
    del state["model"]["vocab"]["##e"]
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token="[UNK]")
    with pytest.raises(ModelError, match="a WordPiece vocabulary without a token for ##e; expected one"):
        trim_tokenizer(bare, TEXTS, 60)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text("the cat.\n\t\u00a0é日7'", max_size=30).filter(_begins_a_word), max_size=3))
def test_uses_are_those_of_the_whole_texts(kind: str, texts: list[str]) -> None:
    """Counted by unique pre-tokens, and by encoding each text."""
    whole = _WHOLE[kind]
    vocabulary = read_vocabulary(whole)
    found = count_tokens(vocabulary, count_pretokens(vocabulary, texts))
    slow = Counter(i for text in texts for i in whole(text, add_special_tokens=False).input_ids)
    assert found == slow


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", "llama-2", "qwen2", "bert-base-uncased"])
def test_real_tokenizers_keep_what_they_say(name: str, shared_data: Path) -> None:
    whole = load_tokenizer(str(shared_data / "tokenizers" / name))
    with gzip.open(shared_data / "lm" / "wikitext-2" / "valid.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    vocabulary = read_vocabulary(whole)
    uses = count_tokens(vocabulary, count_pretokens(vocabulary, lines))
    ids = whole(lines, add_special_tokens=False, verbose=False, split_special_tokens=True).input_ids
    assert uses == Counter(i for row in ids for i in row)
    trimmed = trim_tokenizer(whole, lines, 8000)
    counts = map_vocabulary(whole, trimmed).counts
    assert counts["exact"] + counts["role"] == len(trimmed) == 8000
    same = trim_tokenizer(whole, lines[:50], len(whole))
    odd = ["naïve 日本語 😀 the  two\n\n\tЖд العربية हिन्दी", *lines[:300]]
    for text in odd:
        assert whole.tokenize(text) == same.tokenize(text)
        read = [one.decode(one(text, add_special_tokens=False).input_ids) for one in (whole, trimmed)]
        assert read[0] == read[1]
