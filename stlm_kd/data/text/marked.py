"""Texts of which a model is to predict a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text, and the spans of it that a model is to predict: begin and end in characters, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]

    def beginning(self, end: int) -> MarkedText:
        """The text up to a character, with the spans that begin before it."""
        return MarkedText(self.text[:end], tuple((a, min(b, end)) for a, b in self.spans if a < end))


Text: TypeAlias = str | MarkedText
"""A text that is predicted as a whole, or in part."""


def text_of(text: Text) -> str:
    """The text alone."""
    return text.text if isinstance(text, MarkedText) else text


def num_bytes_of(text: Text) -> int:
    """The UTF-8 bytes of what is predicted."""
    if isinstance(text, MarkedText):
        return sum(len(text.text[begin:end].encode()) for begin, end in text.spans)
    return len(text.encode())
