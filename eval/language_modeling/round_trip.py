"""The fraction of a text that survives encoding and decoding.

Lower-casing, accent stripping, whitespace collapsing and unknown tokens lose part of it. Bits per byte divide
by all bytes of the text, so a lossy tokenizer has fewer nats to predict: its score is not comparable with
that of a lossless tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from stlm_kd.lazy import tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 2000
"""Characters compared at once, split at whitespace: the cost is quadratic in it."""

_UNITS = re.compile(r"\s+|\w+|[^\w\s]")
_PARTS = re.compile(rf"\s*\S(?s:.{{0,{_LONGEST}}})(?=\s|$)|(?s:.{{1,{_LONGEST}}})")


def bytes_kept(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> float:
    """The fraction of the texts' UTF-8 bytes that decoding restores, 0 to 1; 1 for no text.

    Bytes count as restored if original and decoded text have them in the same order; text added by decoding,
    such as spaces before punctuation, does not reduce the fraction.
    """
    total = sum(len(text.encode()) for text in texts)
    lost = sum(
        _lost(tokenizer, text, decoded)
        for text, decoded in zip(texts, _decoded(tokenizer, texts), strict=True)
    )
    return 1 - lost / total if total else 1.0


def lossy_note(kept: float) -> str:
    """A note on bits per byte for a lossy tokenizer."""
    share = f"{kept:.1%}" if kept < 0.9995 else "not quite 100 %"
    return (
        f"the tokenizer restores {share} of the text's bytes (case, accents, spaces or unknown tokens are "
        "lost): bits per byte are too low to compare with those of a lossless tokenizer"
    )


def _decoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[str]:
    for row in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else ():
        known = [token for token in row if token != tokenizer.unk_token_id]
        if _bytes_without_decoder(tokenizer):
            yield tokenizers.decoders.ByteLevel().decode(tokenizer.convert_ids_to_tokens(known))
        else:
            yield str(tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _bytes_without_decoder(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a byte-level tokenizer was saved without its decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and backend.decoder is None and "ByteLevel" in repr(backend.pre_tokenizer)


def _lost(tokenizer: PreTrainedTokenizerBase, text: str, decoded: str) -> int:
    """Bytes of a text that are not restored; a long text is compared in parts."""
    if text in decoded:
        return 0
    parts = [text] if len(text) <= _LONGEST else _PARTS.findall(text)
    back = [decoded] if len(parts) == 1 else list(_decoded(tokenizer, parts))
    return sum(_lost_of_part(part, one) for part, one in zip(parts, back, strict=True))


def _lost_of_part(text: str, decoded: str) -> int:
    """Compares by words, and by characters where words differ."""
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
