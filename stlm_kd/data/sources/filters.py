"""Filters of documents: by a column's value, by chance, by length, repeated and held-out ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stlm_kd.data.overlap import text_hash
from stlm_kd.errors import DataError, one_line
from stlm_kd.lazy import np
from stlm_kd.notes import note

if TYPE_CHECKING:
    from stlm_kd.data.overlap import Hashes

Value = str | int | float | bool
Where = dict[str, Value | list[Value]]
"""Columns of a table, each with the value, or the values, that rows must have."""

_SHOWN = 5
_ORDER = ("where", "subsample", "min_characters", "deduplicate", "remove_overlap")


class Selection:
    """The rows of tables that have the wanted values; counts the others.

    Attributes:
        taken: The number of rows that were left out.
        found: Some of their values, for messages.
        as_text: Columns with a wanted number, or true or false, and the same as a text that was found.
        not_of_text: Columns with values that are no texts.
    """

    def __init__(self, where: Where) -> None:
        self.wanted = {
            column: values if isinstance(values, list) else [values] for column, values in where.items()
        }
        self.taken = 0
        self.found: dict[str, None] = {}
        self.as_text: dict[str, tuple[Value, str]] = {}
        self.not_of_text: set[str] = set()

    @classmethod
    def of(cls, where: Selection | Where | None) -> Selection | None:
        """The selection of an option's value; one that is counting already stays."""
        return cls(where) if isinstance(where, dict) else where

    def __str__(self) -> str:
        return ", ".join(
            f"{column}: {' or '.join(map(repr, values))}" for column, values in self.wanted.items()
        )

    def takes(self, row: Mapping[str, object]) -> bool:
        """Whether a row is left out. Values have to be of the wanted kind: 1 is neither "1" nor true."""
        for column, values in self.wanted.items():
            value = row[column]
            self._note_kind(column, values, value)
            if not any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in values):
                self.taken += 1
                if len(self.found) < _SHOWN:
                    self.found[f"{column}: {one_line(repr(value))[:40]}"] = None
                return True
        return False

    def _note_kind(self, column: str, values: list[Value], value: object) -> None:
        if isinstance(value, str):
            for one in values:
                if not isinstance(one, str) and str(one).lower() == value.lower():
                    self.as_text.setdefault(column, (one, value))
        elif value is not None:
            self.not_of_text.add(column)

    def require_kinds(self, place: str) -> None:
        """Raise DataError if a number is wanted, and is there, of a column that has only texts."""
        for column, (one, value) in self.as_text.items():
            if column not in self.not_of_text:
                raise DataError(
                    f"{place}: where {column}: {one} found, but the column has only texts, such as "
                    f'{value!r}; quote it: "{value}"'
                )


@dataclass(frozen=True, slots=True)
class Subsample:
    """A random part of the documents: each with the probability ``rate``.

    A document is drawn by the seed and its number in the order of reading, so that the same ones are read
    again, and those of a lower rate are among those of a higher one.
    """

    rate: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise DataError(f"subsample: rate {self.rate} found; expected more than 0 and at most 1")

    def __str__(self) -> str:
        return f"{self.rate:.6g} (seed {self.seed})"

    def takes(self, number: int) -> bool:
        """Whether the document of this number is left out."""
        drawn = hashlib.blake2b(b"%d %d" % (self.seed, number), digest_size=8).digest()
        return int.from_bytes(drawn, "little") >= self.rate * 2**64


class HashSet:
    """A growing set of 64-bit hashes, sorted in one array: about 10 bytes for each, and 20 while it grows."""

    def __init__(self, hashes: Iterable[int] = ()) -> None:
        self._sorted: Hashes = np.empty(0, np.uint64)
        self._recent: set[int] = set()
        for hashed in hashes:
            self.add(hashed)

    def __len__(self) -> int:
        return len(self._sorted) + len(self._recent)

    def __contains__(self, hashed: int) -> bool:
        if hashed in self._recent:
            return True
        place = int(self._sorted.searchsorted(np.uint64(hashed)))
        return place < len(self._sorted) and int(self._sorted[place]) == hashed

    def add(self, hashed: int) -> bool:
        """Add a hash; whether it is new."""
        if hashed in self:
            return False
        self._recent.add(hashed)
        if len(self._recent) > max(1 << 14, len(self._sorted) >> 5):  # a Python set has 80 bytes for each
            recent = np.sort(np.fromiter(self._recent, np.uint64, len(self._recent)))
            places = self._sorted.searchsorted(recent)
            self._sorted, self._recent = np.insert(self._sorted, places, recent), set()
        return True


def itself(text: str) -> tuple[str, ...]:
    """The text of a document: what is counted and compared of it, if it is no chat."""
    return (text,)


def hashes_of(texts: Iterable[str], parts_of: Callable[[str], Sequence[str]] = itself) -> Iterator[int]:
    """The hashes of documents."""
    return (text_hash(*parts_of(text)) for text in texts)


@dataclass
class Filters:
    """One pass over the documents of a source through its filters.

    Attributes:
        where: The rows that are read, if the source is of tables.
        subsample: The random part that is read.
        min_characters: The shortest document.
        deduplicate: Whether a document is read once, however often it occurs, but for its white space.
        held_out: Documents that are not read.
        parts_of: The texts of a document whose white space does not count.
        said: The text of a document whose characters count.
    """

    where: Selection | None = None
    subsample: Subsample | None = None
    min_characters: int | None = None
    deduplicate: bool = False
    held_out: HashSet | None = None
    parts_of: Callable[[str], Sequence[str]] = itself
    said: Callable[[str], str] = str
    taken: Counter[str] = field(default_factory=Counter)
    num_kept: int = 0

    def kept(self, texts: Iterable[str]) -> Iterator[str]:
        """The documents that no filter takes, without blank ones."""
        seen, number = HashSet(), 0
        for text in texts:
            if text and not text.isspace():
                number += 1
                if name := self._taker(text, number, seen):
                    self.taken[name] += 1
                    continue
                self.num_kept += 1
                yield text

    def _taker(self, text: str, number: int, seen: HashSet) -> str:
        """The filter that takes a document; "" if none does."""
        if self.subsample is not None and self.subsample.takes(number):
            return "subsample"
        if self.min_characters is not None and len(self.said(text)) < self.min_characters:
            return "min_characters"
        if self.deduplicate or self.held_out is not None:
            hashed = text_hash(*self.parts_of(text))
            if self.deduplicate and not seen.add(hashed):
                return "deduplicate"
            if self.held_out is not None and hashed in self.held_out:
                return "remove_overlap"
        return ""

    def _counts(self) -> list[str]:
        taken = {**self.taken, "where": self.where.taken if self.where else 0}
        return [f"{name} took {taken[name]:,}" for name in _ORDER if taken.get(name)]

    def note(self, place: str) -> None:
        """Note how many documents each filter took."""
        if counts := self._counts():
            read = self.num_kept + (self.where.taken if self.where else 0) + self.taken.total()
            note(f"{place}: filters kept {self.num_kept:,} of {read:,} documents: {', '.join(counts)}")

    def require_some(self, place: str) -> None:
        """Raise DataError if no document is left, or as ``Selection.require_kinds``."""
        if self.where:
            self.where.require_kinds(place)
        if self.num_kept:
            return
        if not (counts := self._counts()):
            raise DataError(f"{place}: no text in it; every document is empty or blank")
        found = ""
        if self.where and self.where.taken:
            found = f" (where {self.where}; found {', '.join(self.where.found)})"
        raise DataError(f"{place}: no document is left: {', '.join(counts)}{found}; change the filters")
