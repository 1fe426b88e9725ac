"""Translate a teacher's predictions of its own tokens into predictions of a student's tokens.

A student's token has the probability of the teacher's tokens that begin with it. Within a token the teacher
may have read the text so far in several ways: with a token that goes on from there, or with tokens that end
there, each as probable as the teacher says. This is exact where each of the teacher's tokens consists of
whole tokens of the student's, as in a vocabulary that is cut from the teacher's. Elsewhere the student's
tokens that begin where a token of the teacher's begins share its probability as they do in the training text.

Both vocabularies are byte-level. No prediction depends on the text after it, but for one thing: how a
tokenizer splits white space depends on what follows.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

from stlm_kd.errors import ModelError
from stlm_kd.vocabulary.paths import PathTable, Pieces, covering
from stlm_kd.vocabulary.readings import (
    WHOLE,
    ByteReader,
    Cover,
    Covers,
    Reading,
    Stretch,
    Tree,
    read_stretch,
)
from stlm_kd.vocabulary.special_tokens import map_roles, roles_of
from stlm_kd.vocabulary.token_bytes import TokenAlphabet, Vocabulary, read_vocabulary
from stlm_kd.vocabulary.tokenise_bytes import split_surfaces

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

Row = tuple[Sequence[int], Sequence[int]]
"""The student's token ids and the document of each, as in a ``Batch``: 0 is padding."""

_REMEMBERED = 2**16
"""Stretches of text whose readings are kept in memory."""


def translation_faults(own: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> Iterator[str]:
    """Why a teacher with its own tokenizer cannot be translated; nothing if it can.

    Raises ModelError for a vocabulary of an unknown kind.
    """
    vocabularies = {"its vocabulary": read_vocabulary(own), "the student's": read_vocabulary(student)}
    for whose, vocabulary in vocabularies.items():
        if vocabulary.spelling is not TokenAlphabet.BYTE_LEVEL:
            yield f"{whose} is {vocabulary.spelling.value}, and only byte-level ones are translated"
            return
    first, second = (json.dumps(one.steps.get("normalizer")) for one in vocabularies.values())
    if first != second:
        yield f"its tokenizer normalises text by {first}, the student's by {second}"
    before = vocabularies["its vocabulary"].backend.pre_tokenizer
    if before is None or "".join(word for word, _ in before.pre_tokenize_str("a")) != "a":
        yield "its tokenizer puts a space before each text"
    if roles_of(own).start is None:
        yield "its tokenizer has no token that begins a text"


class Translation:
    """From a teacher's vocabulary to a student's.

    Args:
        own: The teacher's tokenizer.
        student: The student's.
        rows: Rows of training text, in which the shares of tokens are counted.

    Attributes:
        table: How the teacher's tokens go on from each path.
        exact_share: The share of the rows' tokens of which the teacher's tokens there consist.
        nodes_per_token: How many positions the teacher reads for each token of the rows.

    Raises:
        ModelError: They cannot be translated, or are of an unknown kind.
    """

    def __init__(
        self, own: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, rows: Iterable[Row] = ()
    ) -> None:
        if (fault := next(translation_faults(own, student), None)) is not None:
            raise ModelError(f"it cannot be translated: {fault}")
        theirs, ours = read_vocabulary(own), read_vocabulary(student)
        self.vocabulary = ours.size
        self._reader = ByteReader(theirs)
        self._surfaces = [b"" if i in ours.added else bytes_ or b"" for i, bytes_ in enumerate(ours.surfaces)]
        self._begin, self._read_as = _specials_read(own, theirs, student, ours)
        exact = self._consisting(theirs, ours)
        seen: dict[int, Counter[Pieces]] = defaultdict(Counter)
        for token, pieces in [*exact.items(), *_specials_predicted(own, theirs, student, ours).items()]:
            seen[token][pieces] += 1
        stretches = Counter(
            pieces
            for ids, documents in rows
            for _, segment in _segments(ids, documents)
            for pieces in self._split(segment)
        )
        self.exact_share = self._count(stretches, exact, seen)
        self.table = PathTable.of(seen)
        self._stretch = lru_cache(_REMEMBERED)(self._read)
        self.nodes_per_token = self._nodes_per_token(stretches)

    def read(self, ids: Sequence[int], documents: Sequence[int]) -> Reading:
        """A row as the teacher reads it: each document after the token that begins a text."""
        tree = Tree()
        covers: list[Covers] = []
        for document, segment in _segments(ids, documents):
            if not document:
                covers += [()] * len(segment)
                continue
            special = self._read_as.get(segment[0])
            last = tree.root(self._begin if special is None else special)
            if special is not None:
                covers.append((Cover(last, WHOLE),))
            for pieces in self._split(segment if special is None else segment[1:]):
                last = self._grow(tree, last, pieces, covers)
        return Reading(tree, covers)

    def _grow(self, tree: Tree, last: int, pieces: Pieces, covers: list[Covers]) -> int:
        """Read a stretch after a node of a tree; returns the node behind it."""
        special = self._read_as.get(pieces[0])
        if special is not None:
            last = tree.child(last, special)
            covers.append((Cover(last, WHOLE),))
            return last
        stretch = self._stretch(pieces)
        places = [last]
        for token, parent in zip(stretch.tree.tokens[1:], stretch.tree.parents[1:], strict=True):
            places.append(tree.child(places[parent], token))
        covers += [
            tuple(Cover(places[one.node], one.path, one.token) for one in row) for row in stretch.covers
        ]
        return places[stretch.end]

    def _read(self, pieces: Pieces) -> Stretch:
        return read_stretch(self._reader, self._text(pieces), pieces, self._ends(pieces), self.table.numbers)

    def _split(self, segment: Sequence[int]) -> Iterator[Pieces]:
        """The stretches of a document: words, several where a token spans them, and each special token."""
        for is_special, group in groupby(segment, key=self._read_as.__contains__):
            pieces = tuple(group)
            if is_special:
                yield from ((piece,) for piece in pieces)
                continue
            sizes = map(len, self._reader.words(self._text(pieces)))
            words, first = {*accumulate(sizes)}, 0
            for last, end in enumerate(self._ends(pieces)):
                if end in words and last > first:
                    yield pieces[first:last]
                    first = last
            if first < len(pieces):
                yield pieces[first:]

    def _consisting(self, theirs: Vocabulary, ours: Vocabulary) -> dict[int, Pieces]:
        """The student's tokens of which each of the teacher's consists."""
        surfaces = [b"" if i in theirs.added else bytes_ or b"" for i, bytes_ in enumerate(theirs.surfaces)]
        rows = [tuple(row) for row in split_surfaces(ours, surfaces, unknown=None)]
        return {
            token: row
            for token, (row, surface) in enumerate(zip(rows, surfaces, strict=True))
            if surface and self._text(row) == surface
        }

    def _count(
        self, stretches: Counter[Pieces], exact: dict[int, Pieces], seen: dict[int, Counter[Pieces]]
    ) -> float:
        """Count which of the student's tokens cover the teacher's; returns the share of exact ones."""
        whole = total = 0
        for pieces, times in stretches.items():
            if pieces[0] in self._read_as:
                continue
            own = [(token, self._reader.sizes[token]) for token in self._reader.tokens(self._text(pieces))]
            for (_, token), covers in covering(own, pieces, [len(self._surfaces[i]) for i in pieces]).items():
                seen[token][covers] += times
                whole += times * len(covers) * (covers == exact.get(token))
            total += times * len(pieces)
        return whole / total if total else 1.0

    def _nodes_per_token(self, stretches: Counter[Pieces]) -> float:
        nodes = total = 0
        for pieces, times in stretches.items():
            is_special = pieces[0] in self._read_as
            nodes += times * (1 if is_special else len(self._read(pieces).tree.tokens) - 1)
            total += times * len(pieces)
        return nodes / total if total else 1.0

    def _text(self, pieces: Iterable[int]) -> bytes:
        return b"".join(self._surfaces[piece] for piece in pieces)

    def _ends(self, pieces: Pieces) -> list[int]:
        return [*accumulate((len(self._surfaces[piece]) for piece in pieces), initial=0)]


def _segments(ids: Sequence[int], documents: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """The documents of a row, or what it has of them, by number; padding is 0."""
    for document, group in groupby(zip(documents, ids, strict=True), key=lambda pair: pair[0]):
        yield document, [i for _, i in group]


def _without_text(vocabulary: Vocabulary) -> list[int]:
    """The ids of tokens that are no part of a text: special, added or unused ones."""
    return [i for i, bytes_ in enumerate(vocabulary.surfaces) if not bytes_ or i in vocabulary.added]


def _specials_read(
    own: PreTrainedTokenizerBase, theirs: Vocabulary, student: PreTrainedTokenizerBase, ours: Vocabulary
) -> tuple[int, dict[int, int]]:
    """The teacher's token that begins a text, and what it reads for each of the student's that is no text.

    That is the one of the same role or name, else the one that begins a text.
    """
    begin = roles_of(own).start
    assert begin is not None, "checked by translation_faults"
    roles = map_roles(roles_of(own), roles_of(student))
    named = {theirs.tokens[i]: i for i in theirs.added}
    return begin, {
        i: roles[i].read if i in roles else named.get(ours.tokens[i], begin) for i in _without_text(ours)
    }


def _specials_predicted(
    own: PreTrainedTokenizerBase, theirs: Vocabulary, student: PreTrainedTokenizerBase, ours: Vocabulary
) -> dict[int, Pieces]:
    """The student's token without text for each of the teacher's; of several the one that ends a text."""
    roles, ends = map_roles(roles_of(own), roles_of(student)), roles_of(student).ends
    found = {theirs.tokens[i]: i for i in theirs.added}
    by_id = {i: roles[i].predict if i in roles else found.get(ours.tokens[i]) for i in _without_text(ours)}
    in_order = sorted(by_id.items(), key=lambda pair: pair[0] in ends)
    return {token: (i,) for i, token in in_order if token is not None}
