"""Data sources: functions that stream documents, and what others must know of each.

A source is one function decorated with ``register_data_source``: its first argument is the value of its key
in recipes (``path: a.txt``), its keyword-only arguments are further keys beside it. A source of this package
also has a line in ``MODULES``. Texts are streamed, so a corpus of any size needs little memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin

from stlm_kd.data.chats import ChatFormat, chat_text, parts_of, plain_text
from stlm_kd.data.sources.ahead import Part, in_turn
from stlm_kd.data.sources.files import read_errors
from stlm_kd.data.sources.filters import Filters, HashSet, Selection, Subsample, hashes_of, itself
from stlm_kd.data.sources.limits import LastOne, Limit
from stlm_kd.data.sources.tables import Row, require_columns
from stlm_kd.errors import DataError, MissingResourceError, did_you_mean
from stlm_kd.registry import Extension, Registry, first_argument, options_of, registering


@dataclass(frozen=True, eq=False)
class DataSource(Extension):
    """A data source: ``source(value, /, **options)`` streams documents.

    ``value`` is that of the source's key. All functions below receive the value and, unless stated otherwise,
    the options of what is read, with their defaults.

    Attributes:
        identity: What identifies the content, as JSON values: part of the key of all that is derived from it.
        rows: ``rows(value, columns, optional, /, **options)`` streams rows of labelled examples, each with
            its place for messages; has its own options. None: the source has only text.
        parts: ``parts(value, /, **options)``: the ``Part``s of the text in order, each read when it is asked
            for; the source's documents are those of its parts in turn. None: it has no parts.
        files: ``files(value, labelled)``: the local files that are read, to find overlaps with other data.
        size: ``size(value, /, **options)``: about the UTF-8 bytes of the text, if that can be told without
            reading it; of chats with the column of the messages. What is read first may be fetched.
        require: Raises MissingResourceError if something is missing, without reading data.
        check: Raises DataError for options that do not fit together.
        described: The source's name in messages.
        reading: Options that say how, or how much, is read, rather than which data.
        noun: What the source provides, in messages.
    """

    identity: Callable[..., Sequence[object]]
    rows: Callable[..., Iterator[tuple[str, Row]]] | None = None
    parts: Callable[..., Sequence[Part[str]]] | None = None
    files: Callable[[Any, bool], Sequence[Path]] = lambda value, labelled: ()
    size: Callable[..., int | None] = lambda value, **options: None
    require: Callable[..., object] = lambda value, **options: None
    check: Callable[..., object] = lambda value, **options: None
    described: Callable[..., str] = lambda value, **options: str(value)
    reading: Collection[str] = ()
    noun: str = ""

    def options(self, labelled: bool) -> dict[str, tuple[Any, Any]]:
        """The options for text or for labelled examples, as ``stlm_kd.registry.options_of``."""
        reader = self._reader(labelled)
        return {} if reader is None else options_of(reader)

    def further_options(self) -> Collection[str]:
        """The names of the options of rows."""
        return () if self.rows is None else [*self.options(labelled=True)]

    def all_options(self) -> list[str]:
        """The names of all options, those for text first."""
        return [*dict.fromkeys([*self.options(labelled=False), *self.options(labelled=True)])]

    def value_type(self, labelled: bool) -> Any:
        """The type of the value for text or for labelled examples; None if there are none."""
        reader = self._reader(labelled)
        return None if reader is None else first_argument(reader)

    def choices(self, labelled: bool) -> tuple[str, ...]:
        """The values for text or for labelled examples, if only some are possible."""
        value_type = self.value_type(labelled)
        return get_args(value_type) if get_origin(value_type) is Literal else ()

    def has(self, value: object, labelled: bool) -> bool:
        """Whether there is text, or labelled examples, under this value."""
        choices = self.choices(labelled)
        return self._reader(labelled) is not None and (not choices or value in choices)

    def _reader(self, labelled: bool) -> Callable[..., Any] | None:
        return self.rows if labelled else self.function


MODULES = {
    "path": "stlm_kd.data.sources.local",
    "hub": "stlm_kd.data.sources.hub",
    "sample": "stlm_kd.data.sources.sample",
}
"""The modules of this package's sources."""

TEXT_KEYS = ("limit", "shuffle", "subsample", "min_characters", "deduplicate", "chat")
"""Keys of all sources of text that change which documents are read."""

DATA_SOURCES: Registry[DataSource] = Registry(
    "data source", 1, MODULES, reserved=("text", "label", "domain", "weight", "share", *TEXT_KEYS), item=str
)


register_data_source = registering(
    DATA_SOURCES,
    DataSource,
    """Register the decorated function as a source of documents, and under its name as a key in recipes.

    >>> @register_data_source("countdown", identity=lambda value, **options: ["countdown", value])
    ... def countdown(start: int, /, *, suffix: str = "!") -> Iterator[str]:
    ...     return (f"{number}{suffix}" for number in range(start, 0, -1))
    >>> DATA_SOURCES["countdown"].all_options()
    ['suffix']
    """,
)


def source_names() -> tuple[str, ...]:
    """The keys of all sources in recipes, those of this package first."""
    return tuple(dict.fromkeys([*MODULES, *DATA_SOURCES]))


@dataclass(frozen=True, init=False)
class NamedSource:
    """A data source with its value and all its options: ``path="a.txt", column="body"``.

    Options that are None or not given have their defaults.
    """

    labelled: ClassVar[bool]
    name: str
    value: Any = field(hash=False)
    options: Mapping[str, Any] = field(hash=False)

    def __init__(self, **given: Any) -> None:
        given = {name: value for name, value in given.items() if value is not None}
        names = [name for name in source_names() if name in given]
        if len(names) != 1:
            *first, last = source_names()
            found = " and ".join(names) or "a source"
            raise DataError(f"{found}: give exactly one of {', '.join(first)} and {last}")
        (name,) = names
        value, entry = given.pop(name), DATA_SOURCES[name]
        known = entry.options(self.labelled)
        if not entry.has(value, self.labelled):
            choices = entry.choices(self.labelled)
            wanted = did_you_mean(str(value), choices) if choices else "; it has no labelled examples"
            raise DataError(f"{name} {value}: not a known {name}{wanted}")
        if wrong := [option for option in given if option not in known]:
            raise DataError(f"{name} {value}: {wrong[0]} is not an option{did_you_mean(wrong[0], known)}")
        defaults = {
            option: default for option, (_, default) in known.items() if default is not Parameter.empty
        }
        for attribute, held in (("name", name), ("value", value), ("options", {**defaults, **given})):
            object.__setattr__(self, attribute, held)
        if missing := [option for option in known if option not in self.options]:
            raise DataError(f"{self.described()}: {missing[0]} is not given, and has no default")
        self.entry.check(value, **self.options)

    @property
    def entry(self) -> DataSource:
        """The registered source."""
        return DATA_SOURCES[self.name]

    def described(self) -> str:
        """The source's name in messages."""
        return self.entry.described(self.value, **self.options)

    def identity(self) -> Sequence[object]:
        """What identifies the content; errors as ``documents``."""
        with read_errors(self.described()):
            return self.entry.identity(self.value, **self.options)


@dataclass(frozen=True, init=False)
class Source(NamedSource):
    """A source of text.

    Attributes:
        domain: Its name for combinations and reports.
        weight: How often a row of it occurs in an epoch (``stlm_kd.data.batches``).
        share: In place of a weight: the share of its rows in an epoch of all sources.
        limit: What is read of it, after all filters.
        shuffle: The seed of the order in which its parts are read; None for their own order.
        subsample: The random part of its documents that is read.
        min_characters: The shortest document that is read.
        deduplicate: Whether documents with the same text, but for white space, are read once.
        chat: How rows are read as chats; documents are then those that ``chats.chat_text`` gives.
        held_out: Sources whose documents are not read.
    """

    labelled = False
    domain: str = "default"
    weight: float = 1.0
    share: float | None = None
    limit: Limit | None = None
    shuffle: int | None = None
    subsample: Subsample | None = None
    min_characters: int | None = None
    deduplicate: bool = False
    chat: ChatFormat | None = None
    held_out: tuple[Source, ...] = ()

    def __init__(
        self,
        *,
        domain: str = "default",
        weight: float = 1.0,
        share: float | None = None,
        limit: Limit | None = None,
        shuffle: int | None = None,
        subsample: Subsample | None = None,
        min_characters: int | None = None,
        deduplicate: bool = False,
        chat: ChatFormat | None = None,
        held_out: tuple[Source, ...] = (),
        **given: Any,
    ) -> None:
        super().__init__(**given)
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"{self.described()}: weight {weight} found, expected 0 or more")
        own = {"domain": domain, "weight": weight, "share": share, "limit": limit, "shuffle": shuffle}
        own |= {"subsample": subsample, "min_characters": min_characters, "deduplicate": deduplicate}
        own |= {"chat": chat, "held_out": held_out}
        for attribute, value in own.items():
            object.__setattr__(self, attribute, value)
        if shuffle is not None and self.entry.parts is None:
            raise DataError(f"{self.described()}: shuffle found, but the source has no parts; leave it out")
        if chat is not None and (self.entry.rows is None or shuffle is not None):
            found = "no rows" if self.entry.rows is None else "shuffle, which is not for chats; leave it out"
            raise DataError(f"{self.described()}: chat and {found}")

    @property
    def row_options(self) -> dict[str, Any]:
        """The options of the rows, which chats are read from."""
        known = self.entry.options(labelled=True)
        return {name: value for name, value in self.options.items() if name in known}

    def identity(self) -> Sequence[object]:
        chosen: dict[str, object] = {key: getattr(self, key) for key in TEXT_KEYS if getattr(self, key)}
        if self.chat is None:
            found = super().identity()
        else:
            with read_errors(self.described()):
                found = self.entry.identity(self.value, **self.row_options)
            chosen |= {"where": self.options["where"]} if self.options.get("where") else {}
        if self.limit is not None:
            chosen["limit"] = [self.limit.unit, self.limit.number]
        if self.shuffle is not None:
            chosen["shuffle"] = self.shuffle
        if self.subsample is not None:
            chosen["subsample"] = [self.subsample.rate, self.subsample.seed]
        if self.chat is not None:
            chosen["chat"] = [*self.chat.identity(), "compared by contents"]
        if self.held_out:
            chosen["held_out"] = [fingerprint(source) for source in self.held_out]
        return [*found, "chosen", chosen] if chosen else found

    def expected_bytes(self) -> int | None:
        """About the UTF-8 bytes that are read, to tell how much time is left; None if unknown."""
        if self.limit is not None:
            return self.limit.number if self.limit.unit == "bytes" else None
        of_chats = {} if self.chat is None else {"column": self.chat.messages}
        try:
            with read_errors(self.described()):
                return self.entry.size(self.value, **{**self.options, **of_chats})
        except (DataError, MissingResourceError):
            return None

    def most_tokens(self, fraction: float = 1.0) -> int | None:
        """A fraction of the limit in tokens; None without such a limit."""
        if self.limit is None or self.limit.unit != "tokens":
            return None
        return max(2, round(fraction * self.limit.number))  # a document's start and end


def documents(source: Source, *, whole: bool = False) -> Iterator[str]:
    """Stream the documents of a source that its filters leave, up to its limit, none of them blank.

    A limit in tokens is left to the caller. Notes how many documents the filters took, and a limit that is
    above what is there. With ``whole`` the last document within a limit is not cut.

    Raises:
        MissingResourceError: It is not found, or the Hub cannot be reached and its cache lacks the data set.
        DataError: Malformed content, a missing column, or no text at all.
    """
    place = source.described()
    selection = Selection.of(source.options.get("where")) if source.name in MODULES else None
    parts, said = (itself, str) if source.chat is None else (parts_of, plain_text)
    held_out = HashSet(
        hashed
        for held in source.held_out
        for hashed in hashes_of(documents(held, whole=True), itself if held.chat is None else parts_of)
    )
    chosen = (selection, source.subsample, source.min_characters, source.deduplicate)
    filters = Filters(*chosen, held_out if held_out else None, parts, said)
    try:
        with read_errors(place):
            texts = filters.kept(_texts(source, selection, place))
            if source.limit is not None:
                last: LastOne = "whole" if whole else "cut" if source.chat is None else "none"
                texts = source.limit.first_of(texts, place, last, said)
            yield from texts
    except GeneratorExit:
        if source.most_tokens() is not None:  # enough tokens are read
            filters.note(place)
        raise
    filters.require_some(place)
    filters.note(place)


def _texts(source: Source, selection: Selection | None, place: str) -> Iterator[str]:
    """What the source's function yields, or its parts in a drawn order."""
    options = dict(source.options) if selection is None else {**source.options, "where": selection}
    if source.chat is not None:
        texts = _chats(source, source.chat, selection)
    elif source.shuffle is None:
        texts = source.entry(source.value, **options)
    else:
        assert source.entry.parts is not None, "checked when the source was made"
        parts = drawn_order(source.entry.parts(source.value, **options), source.shuffle)
        texts = in_turn(parts, len)
    for text in texts:
        if not isinstance(text, str):
            raise DataError(f"{place}: {type(text).__name__} found in place of a document; expected text")
        yield text


def _chats(source: Source, chat: ChatFormat, selection: Selection | None) -> Iterator[str]:
    """The chats in the rows of a source."""
    rows, columns = source.entry.rows, [chat.messages, *(selection.wanted if selection else ())]
    assert rows is not None, "checked when the source was made"
    for place, row in rows(source.value, columns, (), **source.row_options):
        require_columns(place, columns, row)
        if selection is None or not selection.takes(row):
            yield chat_text(row[chat.messages], f"{place}, column {chat.messages}")


def drawn_order(parts: Sequence[Part[str]], seed: int) -> list[Part[str]]:
    """The parts in an order drawn by a seed, which depends on their number alone."""

    def key(place: int) -> bytes:
        return hashlib.sha256(f"{seed} {place}".encode()).digest()

    return [parts[place] for place in sorted(range(len(parts)), key=key)]


def rows(
    source: NamedSource, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Stream the rows of a source of labelled examples, each with its place for messages; errors as there.

    ``columns`` are required in every row, ``optional`` ones are read if present.
    """
    assert source.entry.rows is not None
    with read_errors(source.described()):
        for place, row in source.entry.rows(source.value, columns, optional, **source.options):
            require_columns(place, columns, row)
            yield place, row


def fingerprint(source: Source) -> str:
    """A hash (hex) of a source's content, so a moved file keeps it; domain and weight are not included."""
    return hash_of(source.identity())


def hash_of(facts: Sequence[object]) -> str:
    """A hash (hex) of facts that JSON can represent."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
