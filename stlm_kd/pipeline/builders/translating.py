"""Translations of teachers that keep their vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerFast

from stlm_kd.notes import note
from stlm_kd.pipeline.builders.data import PackedText
from stlm_kd.vocabulary.translation import Row, Translation

_TOKENS = 500_000
"""Training tokens in which a translation counts."""

_AT_ONCE = 16


def translation_of(
    own: PreTrainedTokenizerFast, student: PreTrainedTokenizerFast, text: PackedText, *, place: str
) -> Translation:
    """The translation between two tokenizers, with shares from rows spread evenly over the training text.

    Says how much of the text is translated exactly; ``place`` is the teacher's.
    """
    found = Translation(own, student, _rows(text))
    note(
        f"{place}: translated, exactly for {found.exact_share:.1%} of the training tokens; reads "
        f"{found.nodes_per_token:.2f} positions for each of them"
    )
    return found


def _rows(text: PackedText) -> Iterator[Row]:
    for batch in text.in_order(_AT_ONCE, most_rows=-(-_TOKENS // text.parts[0].context)):
        yield from zip(batch.input_ids.tolist(), batch.document_ids.tolist(), strict=True)
