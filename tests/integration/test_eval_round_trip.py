"""The share of bytes that tokenizers give back, against counts by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling.round_trip import bytes_kept
from tests.support.tokenizer_kinds import TEXTS, byte_level, llama, unigram, word_piece

BYTES = byte_level()


def bytes_after(*steps: normalizers.Normalizer) -> PreTrainedTokenizerFast:
    """One token per byte of the text as it is after these steps."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(
        models.BPE(vocab={piece: place for place, piece in enumerate(["<eos>", *alphabet])}, merges=[])
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.normalizer = normalizers.Sequence(list(steps))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


@given(texts=st.lists(st.text(max_size=50), max_size=4))
@settings(max_examples=50, deadline=None)
def test_a_byte_level_tokenizer_gives_everything_back(texts: list[str]) -> None:
    assert bytes_kept(BYTES, [text.encode(errors="replace").decode() for text in texts]) == 1.0


def test_bytes_come_back_where_a_tokenizer_was_saved_without_its_decoder() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.decoder = None
    assert bytes_kept(tokenizer, ["The Cat  sat, größer."]) == 1.0


@given(words=st.lists(st.text("abcXYZ", min_size=1, max_size=6), min_size=1, max_size=40))
@settings(max_examples=50, deadline=None)
def test_lower_casing_loses_the_capitals(words: list[str]) -> None:
    text = " ".join(words)
    kept = bytes_kept(bytes_after(normalizers.Lowercase()), [text])
    capitals = sum(letter.isupper() for letter in text)
    assert kept == pytest.approx(1 - capitals / len(text))


@pytest.mark.parametrize(
    ("steps", "text", "lost"),
    [
        (
            [normalizers.NFD(), normalizers.StripAccents()],
            "eine größere Höhe",
            4,
        ),  # ö has two bytes
        ([normalizers.Replace("  ", " ")], "two  blanks  here", 2),
        ([normalizers.Strip()], "  at both ends ", 3),
        ([normalizers.Lowercase()], "none of it", 0),
    ],
)
def test_what_is_lost_by_hand(steps: list[normalizers.Normalizer], text: str, lost: int) -> None:
    assert bytes_kept(bytes_after(*steps), [text]) == pytest.approx(1 - lost / len(text.encode()))


def test_long_texts_lose_the_same_share_as_their_parts() -> None:
    lower = bytes_after(normalizers.Lowercase())
    long = " ".join(["The Cat sat"] * 300)
    assert bytes_kept(lower, [long]) == pytest.approx(1 - 600 / len(long))
    assert bytes_kept(lower, ["A" * 2501]) == 0


def test_unknown_tokens_lose_their_text() -> None:
    text = "the cat sat 漢字"
    lost = len(" 漢字".encode())  # the blank before them does not come back either
    assert bytes_kept(word_piece(), [text]) == pytest.approx(1 - lost / len(text.encode()))
    assert bytes_kept(unigram(), ["the cat"]) == bytes_kept(word_piece(), ["the cat.sat!"[:8]]) == 1.0


def test_a_lossy_tokenizer_is_noted_with_its_share_and_a_lossless_one_is_not() -> None:
    for tokenizer, texts, lossless in ((BYTES, ["The Cat"], True), (word_piece(), ["The Cat"], False)):
        result = SUITES["perplexity"](llama(len(tokenizer)), tokenizer, texts)
        assert result.report["bytes_kept"] == (1.0 if lossless else pytest.approx(5 / 7))
        assert any("restores 71.4% of the text's bytes" in note for note in result.notes) != lossless
    assert bytes_kept(BYTES, TEXTS) == 1.0
