"""Translations between vocabularies: what is refused, tables of paths, readings of rows."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.errors import ModelError
from stlm_kd.vocabulary.paths import PathTable, covering
from stlm_kd.vocabulary.readings import WHOLE
from stlm_kd.vocabulary.translation import Translation, translation_faults
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.vocab_pico import TEXT, byte_level, sentencepiece_bpe, word_piece


@pytest.mark.parametrize(
    ("own", "student", "fault"),
    [
        (sentencepiece_bpe, byte_level, "its vocabulary is SentencePiece, and only byte-level"),
        (byte_level, word_piece, "the student's is WordPiece, and only byte-level"),
        (lambda: byte_level(add_prefix_space=True), byte_level, "puts a space before each text"),
    ],
)
def test_what_cannot_be_translated_is_refused(own: object, student: object, fault: str) -> None:
    assert callable(own) and callable(student)
    found = [*translation_faults(own(), student())]
    assert len(found) == 1 and fault in found[0]
    with pytest.raises(ModelError, match=fault):
        Translation(own(), student())


def test_shares_of_tokens_by_hand() -> None:
    """Token 7 was 5, 6 three times and 9 once; token 8 always 5."""
    table = PathTable.of({7: {(5, 6): 3, (9,): 1}, 8: {(5,): 2}})
    assert dict(table.numbers) == {(): 0, (5,): 1}
    assert table.starts.tolist() == [0, 3, 4]
    rows = zip(table.tokens.tolist(), table.following.tolist(), table.shares.tolist(), strict=True)
    assert [*rows] == [(7, 5, 0.75), (7, 9, 0.25), (8, 5, 1.0), (7, 6, 0.75)]


def test_tokens_that_begin_at_no_common_boundary_are_not_covered() -> None:
    """ab|cd|e against a|bc|d|e: ``cd`` begins within ``bc``."""
    found = covering([(1, 2), (2, 2), (3, 1)], [10, 11, 12, 13], [1, 2, 1, 1])
    assert found == {(0, 1): (10, 11), (2, 3): (13,)}


@given(text=st.text(max_size=40), size=st.integers(262, 312))
def test_a_vocabulary_that_is_cut_from_the_teachers_is_exact(text: str, size: int) -> None:
    whole, trimmed = cut(size)
    ids = trimmed(text)["input_ids"]
    found = Translation(whole, trimmed, [(ids, [1] * len(ids))])
    assert found.exact_share == 1


@given(text=st.text(min_size=1, max_size=60), first=st.integers(0, 20))
def test_each_position_ends_in_a_reading_of_all_before_it(text: str, first: int) -> None:
    """Of rows that begin and end anywhere, within a character, too."""
    whole, trimmed = cut(262)
    ids = trimmed(text)["input_ids"][first:] or [0]
    reading = Translation(whole, trimmed).read(ids, [1] * len(ids))
    assert len(reading.covers) == len(ids)
    for count, covers in enumerate(reading.covers, 1):
        assert [one.path == WHOLE for one in covers] == [*[False] * (len(covers) - 1), True]
        read, node = [], covers[-1].node
        while node >= 0:
            read.append(reading.tree.tokens[node])
            node = reading.tree.parents[node]
        assert in_bytes(whole, read[::-1]) == in_bytes(trimmed, ids[:count])


@cache
def cut(size: int) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """A tokenizer and one of so many of its tokens."""
    whole = byte_level()
    return whole, trim_tokenizer(whole, TEXT, size)


def in_bytes(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Tokens in the byte alphabet, without those that are no text."""
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return "".join(token for i, token in zip(ids, tokens, strict=True) if i not in tokenizer.all_special_ids)
