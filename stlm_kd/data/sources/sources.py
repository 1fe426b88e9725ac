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

from stlm_kd.data.sources.files import read_errors
from stlm_kd.data.sources.tables import Row, require_columns
from stlm_kd.errors import DataError, did_you_mean
from stlm_kd.registry import Extension, Registry, first_argument, options_of, registering


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a source, such as a file: its name within the source, and a function that streams it."""

    name: str
    read: Callable[[], Iterator[str]]


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
        require: Raises MissingResourceError if something is missing, without reading data.
        check: Raises DataError for options that do not fit together.
        described: The source's name in messages.
        reading: Options that say how, or how much, is read, rather than which data.
        noun: What the source provides, in messages.
    """

    identity: Callable[..., Sequence[object]]
    rows: Callable[..., Iterator[tuple[str, Row]]] | None = None
    parts: Callable[..., Sequence[Part]] | None = None
    files: Callable[[Any, bool], Sequence[Path]] = lambda value, labelled: ()
    require: Callable[..., object] = lambda value, **options: None
    check: Callable[..., object] = lambda value, **options: None
    described: Callable[..., str] = lambda value, **options: str(value)
    reading: Collection[str] = ()
    noun: str = ""

    def options(self, labelled: bool) -> dict[str, tuple[Any, Any]]:
        """The options for text or for labelled examples, as ``stlm_kd.registry.options_of``."""
        reader = self._reader(labelled)
        return {} if reader is None else options_of(reader)

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

DATA_SOURCES: Registry[DataSource] = Registry(
    "data source", 1, MODULES, reserved=("text", "label", "domain", "weight"), item=str
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
    """A source of text; ``weight`` is how often a row of it occurs in an epoch (``stlm_kd.data.batches``)."""

    labelled = False
    domain: str = "default"
    weight: float = 1.0

    def __init__(self, *, domain: str = "default", weight: float = 1.0, **given: Any) -> None:
        super().__init__(**given)
        if not (math.isfinite(weight) and weight >= 0):
            raise DataError(f"{self.described()}: weight {weight} found, expected 0 or more")
        object.__setattr__(self, "domain", domain)
        object.__setattr__(self, "weight", weight)


def documents(source: Source) -> Iterator[str]:
    """Stream the documents of a source, none of them blank.

    Raises MissingResourceError if it is not found, or the Hub cannot be reached and its cache lacks the data
    set; DataError for malformed content, a missing column, or no text at all.
    """
    place, found = source.described(), False
    with read_errors(place):
        for text in source.entry(source.value, **source.options):
            if not isinstance(text, str):
                raise DataError(f"{place}: {type(text).__name__} found in place of a document; expected text")
            if text and not text.isspace():
                found = True
                yield text
    if not found:
        raise DataError(f"{place}: no text in it; every document is empty or blank")


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
