"""A limit on what is read of a source: so many documents, bytes or tokens from its beginning."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from stlm_kd.errors import DataError
from stlm_kd.notes import note

Unit = Literal["tokens", "documents", "bytes"]
LastOne = Literal["cut", "whole", "none"]
"""Whether the last document within a limit is cut, taken whole, or left out."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The first ``number`` tokens, documents or bytes of UTF-8 of a source, and no more.

    Tokens are counted by whoever tokenises (``stlm_kd.data.corpus``). The last document is cut: of bytes,
    after a word.
    """

    unit: Unit
    number: int

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit) or type(self.number) is not int or self.number < 1:
            units = ", ".join(get_args(Unit))
            raise DataError(f"limit: {self.number} {self.unit} found; expected 1 or more of {units}")

    def __str__(self) -> str:
        return f"{self.number:,} {self.unit}"

    def first_of(
        self, texts: Iterator[str], place: str, last: LastOne = "cut", said: Callable[[str], str] = str
    ) -> Iterator[str]:
        """The documents within the limit; a note if there are fewer. Tokens are not counted here.

        ``last`` says what becomes of a document that is too long, ``said`` gives the text of one whose bytes
        count.
        """
        left = self.number
        for text in texts:
            if self.unit == "tokens":
                yield text
                continue
            size = 1 if self.unit == "documents" else len(said(text).encode())
            cut = text
            if size > left and last != "whole":
                cut = first_words(text, left) if last == "cut" else ""
            if cut:
                yield cut
            elif left == self.number:
                raise DataError(f"{place}: limit {self} ends within the first word; raise it")
            left -= size
            if left <= 0:
                return
        if self.unit != "tokens":
            self.note_more_than(self.number - left, place)

    def note_more_than(self, found: int, place: str) -> None:
        """Note that a source has less than its limit."""
        note(f"{place}: limit {self} found, but the set has only {found:,}; all are read")


def first_words(text: str, num_bytes: int) -> str:
    """As many whole words as fit into ``num_bytes``.

    >>> first_words("naïve cats", 6), first_words("naïve cats", 7), first_words("naïve", 3)
    ('naïve', 'naïve', '')
    """
    start = text.encode()[:num_bytes].decode(errors="ignore")
    if start[-1:].isspace() or text[len(start) : len(start) + 1].isspace():
        return start.rstrip()
    words = start.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 else ""
