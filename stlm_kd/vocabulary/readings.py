"""Texts as a byte-level tokenizer reads them, and several readings of one text as a tree of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stlm_kd.vocabulary.token_bytes import Vocabulary, in_byte_alphabet

if TYPE_CHECKING:
    from stlm_kd.vocabulary.paths import Pieces

NOWHERE, WHOLE = -1, 0
"""Paths of a cover: no token goes on from it; it ends where the text ends."""

_RAW = re.compile("([\udc80-\udcff]+)")
"""Bytes that are not valid UTF-8, as ``surrogateescape`` decodes them."""


@dataclass(frozen=True, slots=True)
class Cover:
    """A state of the teacher in which it has read a beginning of the text.

    ``node`` is that of the tree of readings; ``path`` the number of the student's tokens between it and the
    end of the text, in a ``PathTable``; ``token`` what the teacher reads on the way to the next cover.
    """

    node: int
    path: int
    token: int = 0


Covers = tuple[Cover, ...]
"""The teacher's states behind a position, in the order of what each has read; the last one has read all."""


@dataclass(slots=True)
class Tree:
    """Readings as a tree of the teacher's tokens, each after its parent; the parent of a root is -1."""

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    _known: dict[tuple[int, int], int] = field(default_factory=dict)

    def root(self, token: int) -> int:
        """The first token of a new document."""
        self.tokens.append(token)
        self.parents.append(-1)
        return len(self.tokens) - 1

    def child(self, node: int, token: int) -> int:
        """The node that reads a token after another node."""
        key = (node, token)
        if key not in self._known:
            self._known[key] = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(node)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class Reading:
    """A row as the teacher reads it: its tree, and the covers behind each position; () for padding."""

    tree: Tree
    covers: list[Covers]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of text at whose ends both tokenisations have a boundary.

    ``covers`` are those behind each of the student's tokens; node 0 is the state before the stretch, ``end``
    the one behind it.
    """

    tree: Tree
    covers: list[Covers]
    end: int


class ByteReader:
    """A byte-level tokenizer on bytes, which need not be valid UTF-8."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._backend = vocabulary.backend
        self.sizes = [len(surface or b"") for surface in vocabulary.surfaces]

    def words(self, text: bytes) -> Iterator[str]:
        """What no token reaches beyond, in the byte alphabet; bytes that are no text are words, too."""
        for number, run in enumerate(_RAW.split(text.decode(errors="surrogateescape"))):
            if number % 2:
                yield in_byte_alphabet(run.encode(errors="surrogateescape"))
            elif run:
                yield from (word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(run))

    def tokens(self, text: bytes) -> list[int]:
        """The token ids of a text; bytes that the vocabulary lacks are left out."""
        return [token.id for word in self.words(text) for token in self._backend.model.tokenize(word)]


def read_stretch(
    reader: ByteReader, text: bytes, pieces: Pieces, ends: Sequence[int], numbers: Mapping[Pieces, int]
) -> Stretch:
    """The teacher's readings of all beginnings of a stretch.

    ``ends`` are those of the student's ``pieces`` in bytes, from 0 on; ``numbers`` are those of the paths.
    """
    places = {end: i for i, end in enumerate(ends)}
    tree, covers, node = Tree(), [], 0
    tree.root(0)
    for count in range(1, len(ends)):
        tokens = reader.tokens(text[: ends[count]])
        is_lossless = sum(reader.sizes[token] for token in tokens) == ends[count]
        found: list[Cover] = []
        node, at = 0, 0
        for token in tokens:
            path = NOWHERE
            if is_lossless and at in places:
                path = numbers.get(pieces[places[at] : count], NOWHERE)
            if path != NOWHERE or found:
                found.append(Cover(node, path, token))
            node, at = tree.child(node, token), at + reader.sizes[token]
        covers.append((*found, Cover(node, WHOLE)))
    return Stretch(tree, covers, node)
