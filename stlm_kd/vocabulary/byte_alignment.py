"""Align two tokenisations of a text by bytes: common token boundaries and the spans between them.

Shapes: N tokens of a document in the new vocabulary, M in the old one, S spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

NO_SPAN = -1
"""Span index of a token outside all spans."""


@dataclass(frozen=True, slots=True)
class ByteBoundaries:
    """The end of each token of a document in bytes of its text, in both tokenisations, (N,) and (M,).

    It is 0 for the start token, the text's length + 1 for the end token; the two agree in the first
    ``agreed`` bytes.
    """

    new: Integers
    old: Integers
    agreed: int


@dataclass(frozen=True, slots=True)
class Spans:
    """A segment of a document in both tokenisations, with the span of each token, of ``count`` spans.

    ``of_new`` is the span of each *predicted* new token, or ``NO_SPAN``; ``old_ids`` are the segment's old
    tokens, () if there is no span, and ``of_old`` the span of each predicted one. A segment's first token is
    only an input.
    """

    of_new: Integers
    old_ids: Integers
    of_old: Integers
    count: int


def spelled(ids: npt.NDArray[np.integer], surfaces: Sequence[bytes | None]) -> tuple[bytes, Integers] | None:
    """The text of a document between its start and end tokens, and its token boundaries.

    None if a token has no bytes: a special token within the text, or the unknown token.

    >>> spelled(np.array([0, 1, 2, 1, 0]), [None, b"a", b" bc"])
    (b'a bca', array([0, 1, 4, 5, 6]))
    """
    parts = [surfaces[i] for i in ids[1:-1].tolist()]
    if any(part is None for part in parts):
        return None
    lengths = [0, *(len(part) for part in parts if part is not None), 1]
    return b"".join(part for part in parts if part is not None), np.cumsum(lengths)


def ends_of(new: tuple[bytes, Integers], old: tuple[bytes, Integers]) -> ByteBoundaries:
    """Boundaries of both tokenisations of a document, as from ``spelled``, in common byte offsets.

    A space that only one of them prepends to the text (SentencePiece) is ignored. If normalisation makes them
    differ, they agree up to the first difference.
    """
    (new_text, new_ends), (old_text, old_ends) = new, old
    if _has_one_more_space(new_text, old_text):
        new_text, new_ends = new_text[1:], np.maximum(new_ends - 1, 0)
    elif _has_one_more_space(old_text, new_text):
        old_text, old_ends = old_text[1:], np.maximum(old_ends - 1, 0)
    if new_text == old_text:
        return ByteBoundaries(new_ends, old_ends, int(new_ends[-1]))
    shorter = min(len(new_text), len(old_text))
    first, second = (np.frombuffer(text, np.uint8, shorter) for text in (new_text, old_text))
    unlike = np.flatnonzero(first != second)
    return ByteBoundaries(new_ends, old_ends, int(unlike[0]) if len(unlike) else shorter)


def _has_one_more_space(text: bytes, other: bytes) -> bool:
    """Whether only this text begins with a space, or with one more."""
    return text == b" " + other or (text[:1] == b" " and other[:1] != b" ")


def spans_of(
    ends: ByteBoundaries, old_ids: npt.NDArray[np.integer], begin: int, length: int, *, most_old: int
) -> Spans:
    """The spans of a segment of a document; both tokenisations have a boundary at the end of each.

    ``length`` new tokens are inputs, from ``begin`` on; the last one predicts the token after it, if any.
    Uses the old tokens within the segment, at most ``most_old``, so that both models have the same context
    before a span, up to parts of a token at the beginning. All tokens of a span are predicted within the
    segment.
    """
    last = min(begin + length, len(ends.new) - 1)
    of_new = np.full(length, NO_SPAN)
    nothing = Spans(of_new, np.zeros(0, np.int64), np.zeros(0, np.int64), 0)
    first_old = 0 if begin == 0 else int(np.searchsorted(ends.old, ends.new[begin - 1])) + 1
    last_old = min(first_old + most_old, int(np.searchsorted(ends.old, ends.new[last], side="right")) - 1)
    if last_old <= first_old:
        return nothing
    new_bytes, new_first = np.unique(ends.new[begin : last + 1], return_index=True)
    old_bytes, old_first = np.unique(ends.old[first_old : last_old + 1], return_index=True)
    common, in_new, in_old = np.intersect1d(new_bytes, old_bytes, assume_unique=True, return_indices=True)
    kept = common <= ends.agreed
    new_places, old_places = new_first[in_new[kept]], old_first[in_old[kept]]
    count = len(new_places) - 1
    if count < 1:
        return nothing
    of_new[new_places[0] : new_places[-1]] = np.repeat(np.arange(count), np.diff(new_places))
    of_old = np.full(old_places[-1], NO_SPAN)
    of_old[old_places[0] :] = np.repeat(np.arange(count), np.diff(old_places))
    read = np.asarray(old_ids[first_old : first_old + old_places[-1] + 1], np.int64)
    return Spans(of_new, read, of_old, count)
