"""Learn a tokenizer's merges with a preference for the tokens that several teachers have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from stlm_kd.notes import note
from stlm_kd.vocabulary.mapping import ids_by_surface
from stlm_kd.vocabulary.merges import learn_merges
from stlm_kd.vocabulary.pretokens import count_pretokens
from stlm_kd.vocabulary.token_bytes import byte_alphabet, in_byte_alphabet, read_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LACKING = 0.5
"""The weight of a token for each teacher that lacks it, of 1 for a token that all have."""
_FEW = 0.5


def preferred_merges(
    base: PreTrainedTokenizerFast,
    texts: Iterable[str],
    num_tokens: int,
    *,
    teachers: Sequence[PreTrainedTokenizerFast],
    place: str = "tokenizer",
) -> list[tuple[str, str]]:
    """The merges of a text that make ``num_tokens`` tokens, most of which all teachers have.

    A merge whose result n teachers lack, by its bytes, counts as if it occurred ``LACKING`` ** n times as
    often. A note says so if less than half of the text is in tokens of all teachers.

    Args:
        base: A byte-level tokenizer of bytes and special tokens.
        texts: Read once.
        num_tokens: The number of tokens to make.
        teachers: Their tokenizers, of any kind.
        place: The tokenizer's place in messages.

    Raises:
        ModelError: A teacher's tokenizer is not fast, or of an unknown kind.
    """
    owned = [{in_byte_alphabet(text) for text in ids_by_surface(read_vocabulary(one))} for one in teachers]

    @cache
    def weight(token: str) -> float:
        return float(LACKING ** sum(token not in tokens for tokens in owned))

    pretokens = count_pretokens(read_vocabulary(base), texts)
    learned = learn_merges(pretokens, sorted(byte_alphabet().values()), num_tokens, weight)
    shared = sum(uses for token, uses in learned.uses.items() if weight(token) == 1)
    if shared < _FEW * (total := learned.uses.total()):
        note(
            f"{place}: {shared / total:.1%} of the text is in tokens that all teachers have, although such "
            "tokens were preferred; the teachers share few tokens"
        )
    return learned.merges
