"""Where two tokenisations of one text end tokens at the same byte, and the spans of text between these.

Shapes: N tokens of a document in the new vocabulary, M in the old one, S spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

NO_SPAN = -1
"""The span of a token that is in none."""


@dataclass(frozen=True, slots=True)
class ByteBoundaries:
    """Where the tokens of both tokenisations of a document end.

    Attributes:
        new: After how many bytes of the text each token ends, (N,); 0 for the start of the document, one more
            than the text has for its end.
        old: The same in the old vocabulary, (M,).
        agreed: Up to which byte both spell the same.
    """

    new: Integers
    old: Integers
    agreed: int


@dataclass(frozen=True, slots=True)
class Spans:
    """A stretch of a document in both tokenisations, and which of its tokens make which span.

    Attributes:
        of_new: The span of each *predicted* new token of the stretch, or ``NO_SPAN``: the first token is
            only read.
        old_ids: The old tokens to read, the first of which is only read; () where there is no span.
        of_old: The span of each predicted old token, (len(old_ids) - 1,).
        count: S.
    """

    of_new: Integers
    old_ids: Integers
    of_old: Integers
    count: int


def spelled(ids: npt.NDArray[np.integer], surfaces: Sequence[bytes | None]) -> tuple[bytes, Integers] | None:
    """The text of a document between its start and its end, and where its tokens end in it.

    None where a token stands for no text: a special one that is spelt out in it, or the unknown one.

    >>> spelled(np.array([0, 1, 2, 1, 0]), [None, b"a", b" bc"])
    (b'a bca', array([0, 1, 4, 5, 6]))
    """
    parts = [surfaces[i] for i in ids[1:-1].tolist()]
    if any(part is None for part in parts):
        return None
    lengths = [0, *(len(part) for part in parts if part is not None), 1]
    return b"".join(part for part in parts if part is not None), np.cumsum(lengths)


def ends_of(new: tuple[bytes, Integers], old: tuple[bytes, Integers]) -> ByteBoundaries:
    """Both tokenisations on one count of bytes.

    A space that one of them puts before the text (SentencePiece's) is not counted. Where normalisation makes
    them differ, they agree up to there.

    Args:
        new: What ``spelled`` gave of the document in the new vocabulary.
        old: The same in the old one.
    """
    (new_text, new_ends), (old_text, old_ends) = new, old
    if new_text[:1] == b" " and old_text[:1] != b" ":
        new_text, new_ends = new_text[1:], np.maximum(new_ends - 1, 0)
    elif old_text[:1] == b" " and new_text[:1] != b" ":
        old_text, old_ends = old_text[1:], np.maximum(old_ends - 1, 0)
    elif new_text != old_text and (new_text == b" " + old_text or old_text == b" " + new_text):
        if len(new_text) > len(old_text):
            new_text, new_ends = new_text[1:], np.maximum(new_ends - 1, 0)
        else:
            old_text, old_ends = old_text[1:], np.maximum(old_ends - 1, 0)
    if new_text == old_text:
        return ByteBoundaries(new_ends, old_ends, int(new_ends[-1]))
    shorter = min(len(new_text), len(old_text))
    first, second = (np.frombuffer(text, np.uint8, shorter) for text in (new_text, old_text))
    unlike = np.flatnonzero(first != second)
    return ByteBoundaries(new_ends, old_ends, int(unlike[0]) if len(unlike) else shorter)


def spans_of(
    ends: ByteBoundaries, old_ids: npt.NDArray[np.integer], begin: int, length: int, *, most_old: int
) -> Spans:
    """The spans of a stretch of a document, each ended by both tokenisations at the same byte.

    The old tokens are those that lie within the stretch, so that both models read the same text before a
    span, up to parts of a token at the beginning. The tokens of a span are predicted within the stretch.

    Args:
        ends: Of the document.
        old_ids: The document in the old vocabulary, (M,).
        begin: The first new token that is read.
        length: How many are read; the last one predicts the token after it, where there is one.
        most_old: Old tokens that can be read.
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
