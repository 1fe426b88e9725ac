"""How much of a text comes back from a tokenizer.

Lower-casing, stripped accents, collapsed blanks and unknown tokens lose some of it. Bits per byte divide by
all bytes of the text, so that a tokenizer which loses some is asked for fewer nats: its score does not
compare with that of a tokenizer which keeps everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

_LONGEST = 2000
"""Characters that are compared at once, cut at blanks: the time grows with the square of it."""

_UNITS = re.compile(r"\s+|\w+|[^\w\s]")
_PARTS = re.compile(rf"\s*\S(?s:.{{0,{_LONGEST}}})(?=\s|$)|(?s:.{{1,{_LONGEST}}})")


def bytes_kept(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """The share of the texts' UTF-8 bytes that encoding and decoding give back, 0 to 1; 1 of no text.

    Bytes are given back where original and decoded text have them in the same order; what decoding adds, such
    as blanks before punctuation, takes nothing away.
    """
    total = sum(len(text.encode()) for text in texts)
    lost = sum(
        _lost(tokenizer, text, decoded)
        for text, decoded in zip(texts, _decoded(tokenizer, texts), strict=True)
    )
    return 1 - lost / total if total else 1.0


def lossy_note(kept: float) -> str:
    """What a reader of bits per byte must know where a tokenizer does not keep all of the text."""
    share = f"{kept:.1%}" if kept < 0.9995 else "not quite 100 %"
    return (
        f"the tokenizer gives back {share} of the text's bytes (case, accents, blanks or unknown tokens are "
        "lost): bits per byte are too low to compare with those of a tokenizer that gives back all"
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[str]:
    for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else ():
        known = [token for token in row if token != tokenizer.unk_token_id]
        if _bytes_without_decoder(tokenizer):
            yield decoders.ByteLevel().decode(tokenizer.convert_ids_to_tokens(known))
        else:
            yield str(tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _bytes_without_decoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer spells bytes and was saved without the step that makes text of them again."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and backend.decoder is None and "ByteLevel" in repr(backend.pre_tokenizer)


def _lost(tokenizer: PreTrainedTokenizerBase, text: str, decoded: str) -> int:
    """Bytes of a text that do not come back; the parts of a long one are compared one by one."""
    if text in decoded:
        return 0
    parts = [text] if len(text) <= _LONGEST else _PARTS.findall(text)
    back = [decoded] if len(parts) == 1 else list(_decoded(tokenizer, parts))
    return sum(_lost_of_part(part, one) for part, one in zip(parts, back, strict=True))


def _lost_of_part(text: str, decoded: str) -> int:
    """By words, and where words differ by characters."""
    own, other = _UNITS.findall(text), _UNITS.findall(decoded)
    lost = 0
    for change, begin, end, other_begin, other_end in SequenceMatcher(
        None, own, other, autojunk=False
    ).get_opcodes():
        if change in ("replace", "delete"):
            piece, found = "".join(own[begin:end]), "".join(other[other_begin:other_end])
            lost += len(piece.encode()) - _shared_bytes(piece, found)
    return lost


def _shared_bytes(text: str, decoded: str) -> int:
    blocks = SequenceMatcher(None, text, decoded, autojunk=False).get_matching_blocks()
    return sum(len(text[block.a : block.a + block.size].encode()) for block in blocks)
