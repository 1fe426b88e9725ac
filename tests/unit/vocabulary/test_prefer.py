"""Vocabularies whose tokens several teachers have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import tokenizer_identity, train_tokenizer
from stlm_kd.vocabulary.merges import learn_merges
from stlm_kd.vocabulary.prefer import LACKING, preferred_merges
from stlm_kd.vocabulary.token_bytes import in_byte_alphabet
from tests.support.tokenizer_kinds import TEXTS, WORDS, byte_level, unigram, word_piece

SIZE = 300


def made_of(teachers: list[PreTrainedTokenizerFast], texts: Iterable[str] = TEXTS) -> PreTrainedTokenizerFast:
    return train_tokenizer(texts, size=SIZE, learn=partial(preferred_merges, teachers=teachers))


def merges_of(tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    return [(a, b) for a, b in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


@pytest.mark.parametrize("masked", [False, True])
def test_without_a_preference_it_is_the_librarys_tokenizer(masked: bool) -> None:
    """The merges of the tokenizers library, in its order."""
    own = train_tokenizer(TEXTS, size=SIZE, masked=masked, learn=partial(preferred_merges, teachers=[]))
    assert tokenizer_identity(own) == tokenizer_identity(train_tokenizer(TEXTS, size=SIZE, masked=masked))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=9), st.integers(1, 4), min_size=1, max_size=6),
    st.sets(st.text("ab", min_size=2, max_size=5), max_size=6),
)
def test_merges_are_those_of_a_slow_search(pretokens: dict[str, int], liked: set[str]) -> None:
    """Each is the best pair of the text with the merges before it; the text is counted anew each time."""

    def weight(token: str) -> float:
        return 1.0 if token in liked else 0.25

    words = {text: list(text) for text in pretokens}
    tokens, expected = ["a", "b"], list[tuple[str, str]]()
    while len(tokens) < 8:
        counts: Counter[tuple[str, str]] = Counter()
        for text, parts in words.items():
            for pair in pairwise(parts):
                counts[pair] += pretokens[text]
        if not counts:
            break
        ranked = sorted(
            counts, key=lambda pair: (-counts[pair] * weight("".join(pair)), *map(tokens.index, pair))
        )
        best = ranked[0]
        if best not in expected:
            expected.append(best)
        if "".join(best) not in tokens:
            tokens.append("".join(best))
        words = {text: _joined(parts, best) for text, parts in words.items()}
    learned = learn_merges(pretokens, "ab", 6, weight)
    assert learned.merges == expected
    left = Counter[str]()
    for text, parts in words.items():
        for part in parts:
            left[part] += pretokens[text]
    assert learned.uses == left


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    found: list[str] = []
    while parts:
        is_pair = tuple(parts[:2]) == pair
        found.append("".join(parts[: 1 + is_pair]))
        parts = parts[1 + is_pair :]
    return found


def _bytes_of(tokenizer: PreTrainedTokenizerFast) -> set[bytes]:
    """The bytes of each token, decoded without the package."""
    tokens = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if "##s" in tokens:
        return {token[2:].encode() if token[:2] == "##" else b" " + token.encode() for token in tokens}
    if any("\u2581" in token for token in tokens):
        return {token.replace("\u2581", " ").encode() for token in tokens}
    return {in_byte_alphabet_inverse(token) for token in tokens}


def in_byte_alphabet_inverse(token: str) -> bytes:
    return bytes(next(i for i in range(256) if in_byte_alphabet(bytes([i])) == one) for one in token)


def test_more_of_the_text_is_in_tokens_that_all_teachers_have() -> None:
    """Shares counted token by token over the text, against a tokenizer without the preference."""
    teachers = [unigram(), word_piece()]
    owned = [_bytes_of(teacher) for teacher in teachers]
    shares, sizes = [], []
    for tokenizer in (train_tokenizer(TEXTS, size=SIZE), made_of(teachers)):
        tokens = [in_byte_alphabet_inverse(token) for text in TEXTS for token in tokenizer.tokenize(text)]
        shares.append(sum(all(token in own for own in owned) for token in tokens) / len(tokens))
        sizes.append(len(tokenizer))
    assert sizes == [SIZE, SIZE]
    assert shares[1] > shares[0] + 0.1


def test_it_is_a_closed_encoding_of_any_text() -> None:
    made = made_of([unigram(), word_piece()])
    tokens = set(made.get_vocab())
    assert all({a, b, a + b} <= tokens for a, b in merges_of(made))
    for text in ("the cat", " naïve\n日本", "".join(WORDS)):
        assert made.decode(made(text).input_ids) == text


def test_a_token_that_a_teacher_lacks_needs_twice_the_uses() -> None:
    """``ab`` is merged before ``cd``, which the teacher has, from three times its uses on."""
    assert LACKING == 0.5
    learn = partial(preferred_merges, teachers=[train_tokenizer(["cd"], size=259)])
    for times, first in ((1, ("c", "d")), (3, ("a", "b"))):
        texts = [*["ab"] * times, "cd"]
        assert merges_of(train_tokenizer(texts, size=260, learn=learn))[0] == first


def test_teachers_that_share_nothing_are_said_with_the_share(caplog: pytest.LogCaptureFixture) -> None:
    """``é`` twenty times, which is no token of WordPiece here, and `` the`` five times, which both have."""
    texts, teachers = [*["é"] * 20, *[" the"] * 5], [word_piece(), byte_level()]
    made = train_tokenizer(texts, size=262, learn=partial(preferred_merges, teachers=teachers))
    assert set(made.tokenize("é the")) == {"Ã©", "Ġthe"}
    assert "tokenizer: 20.0% of the text is in tokens that all teachers have" in caplog.text
