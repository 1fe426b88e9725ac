"""Labelled examples: one or two texts each, and a class or a number.

Files and messages use a class's name (``entailment``, ``1``); labels are indices into ``label_names``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from stlm_kd.data.sources import hub
from stlm_kd.data.sources.sources import NamedSource, hash_of, rows
from stlm_kd.data.sources.tables import Row, read_rows, shown, text_value
from stlm_kd.errors import DataError, did_you_mean
from stlm_kd.lazy import np
from stlm_kd.notes import note
from stlm_kd.sharing.names import expanded

if TYPE_CHECKING:
    import numpy.typing as npt


Labels: TypeAlias = "npt.NDArray[np.int64] | npt.NDArray[np.float32]"

DEFAULT_TEXT = ("sentence",)
DEFAULT_LABEL = "label"

_ID_COLUMNS = ("idx", "id")
_SOURCE_COLUMN = "source"
_OPTIONAL = (*_ID_COLUMNS, _SOURCE_COLUMN)
_HIDDEN = "-1"
_INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True, init=False)
class LabelledSource(NamedSource):
    """Labelled examples: the column of the text, or the two columns of a pair, and the label's column."""

    labelled = True
    text: tuple[str, ...] = DEFAULT_TEXT
    label: str = DEFAULT_LABEL

    def __init__(
        self, *, text: tuple[str, ...] = DEFAULT_TEXT, label: str = DEFAULT_LABEL, **given: Any
    ) -> None:
        super().__init__(**given)
        place = self.described()
        if len(text) not in (1, 2):
            raise DataError(f"{place}: {len(text)} columns of text found, expected one, or two for pairs")
        if label in text or len(set(text)) < len(text):
            raise DataError(f"{place}: a column is named twice; text: {', '.join(text)}; label: {label}")
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "label", label)


@dataclass(frozen=True, slots=True)
class Examples:
    """N labelled examples in the order of their sources.

    ``texts`` are one text or a pair for each; ``labels``, (N,), int64 indices into ``label_names``, or
    float32 numbers, which have no names. ``ids`` identify examples in results: ``idx`` or ``id`` of the
    source if all are distinct, else the index, from 0. ``sources`` are origins from a column ``source`` (in
    CoLA: the book or article); "" for an example without one; empty if none has one.
    """

    texts: tuple[tuple[str, ...], ...]
    labels: Labels
    ids: tuple[str, ...]
    label_names: tuple[str, ...]
    sources: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers."""
        return not self.label_names

    def counts(self) -> dict[str, int]:
        """Number of examples of each class; empty for numbers."""
        return {name: int((self.labels == place).sum()) for place, name in enumerate(self.label_names)}

    def select(self, places: npt.NDArray[np.int64]) -> Examples:
        """These examples, in this order."""
        return replace(
            self,
            texts=tuple(self.texts[place] for place in places),
            labels=self.labels[places],
            ids=tuple(self.ids[place] for place in places),
            sources=tuple(self.sources[place] for place in places) if self.sources else (),
        )


def read_examples(
    *sources: LabelledSource, labels: Sequence[str] = (), regression: bool = False, labels_of: str = ""
) -> Examples:
    """Read all examples of one or several sources, all of single texts or all of pairs.

    ``labels`` are the class names in order. A label is one of them, or an index counted from 0; by default
    they are the distinct labels found, in numeric or else alphabetical order. ``labels_of`` is their origin,
    if the user did not give them for these sources; a note then lists how numeric labels were mapped to them.
    With ``regression``, labels are numbers.

    Raises MissingResourceError if not found, or the Hub cannot be reached and its cache lacks the data set;
    DataError for malformed content, a missing column, a value that is not text, a label that is missing,
    hidden (-1, as in GLUE's test sets) or not one of ``labels``, or no example at all.
    """
    assert sources and not (labels and regression)
    if len(labels) == 1 or len(set(labels)) < len(labels):
        raise DataError(
            f"labels: {', '.join(labels)} found; expected at least two different names of classes"
        )
    if len({len(source.text) for source in sources}) > 1:
        raise DataError("sources of single texts and of pairs together; give text the same number of columns")
    texts: list[tuple[str, ...]] = []
    found: list[tuple[str, object]] = []
    own_ids: list[str | None] = []
    origins: list[str] = []
    for source in sources:
        before = len(texts)
        for place, row in rows(source, (*source.text, source.label), _OPTIONAL):
            texts.append(tuple(_text(row[column], f"{place}, column {column}") for column in source.text))
            found.append((f"{place}, column {source.label}", row[source.label]))
            own_ids.append(_own_id(row))
            origins.append(_origin(row, source))
        if len(texts) == before:
            raise DataError(f"{source.described()}: no example in it")
    values, names = (_numbers(found), ()) if regression else _classes(found, labels, labels_of)
    return Examples(tuple(texts), values, _ids(own_ids), names, tuple(origins) if any(origins) else ())


@lru_cache(maxsize=4)
def known_examples(
    sources: tuple[LabelledSource, ...],
    prints: tuple[str, ...],
    labels: tuple[str, ...],
    regression: bool,
    labels_of: str = "",
) -> Examples:
    """The examples of these sources, cached by fingerprint."""
    return read_examples(*sources, labels=labels, regression=regression, labels_of=labels_of)


def draw_fraction(
    examples: Examples, fraction: float, *, seed: int, place: str = "data.fraction"
) -> Examples:
    """A stratified random fraction of the examples, in their order: the same of each class, rounded.

    With one seed, a smaller fraction is a subset of a larger one. ``place`` is the fraction's name in
    messages. Raises DataError if a class, or the result, would have no example.
    """
    assert 0 < fraction <= 1 and seed >= 0
    names = examples.label_names or ("",)
    groups = np.zeros(len(examples), np.int64) if examples.is_regression else examples.labels
    chosen = []
    for number, name in enumerate(names):
        members = np.flatnonzero(groups == number)
        count = math.floor(fraction * len(members) + 0.5)
        if len(members) and not count:
            raise DataError(_too_small(place, fraction, len(members), len(examples), name))
        chosen.append(np.random.default_rng([seed, number]).permutation(members)[:count])
    return examples.select(np.sort(np.concatenate(chosen)))


def _too_small(place: str, fraction: float, members: int, total: int, name: str) -> str:
    least = math.ceil(500_000 / members) / 1_000_000
    of_class = f" of the {members} of class {name}" if name else ""
    return (
        f"{place}: {fraction:g} of {total} examples leaves none{of_class}; "
        f"use at least {math.ceil(least * total)} examples, a fraction of at least {least:g}"
    )


def fingerprint(source: LabelledSource) -> str:
    """A hash (hex) of the source's content, as for text; errors as ``read_examples``, if visible unread."""
    return hash_of(["examples", source.identity(), source.text, source.label])


def rows_of(
    path: str | None, dataset: str | None, split: str, *, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Row]]:
    """The rows of a file, or else of a split of a data set on the Hub, each with its place for messages."""
    if path is not None:
        return read_rows(expanded(path), columns=columns, optional=optional)
    assert dataset is not None
    return hub.rows(dataset, columns, optional, split=split)


def drawn_places(number: int, fraction: float, *, seed: int) -> list[int]:
    """The ascending indices of a random fraction of ``number`` examples, at least one."""
    count = max(1, round(fraction * number))
    places: list[int] = np.sort(np.random.default_rng([seed]).permutation(number)[:count]).tolist()
    return places


def _text(value: object, place: str) -> str:
    kept = "".join(text_value(value, place))  # empty if the text is blank
    return kept if kept else str(value)


def _own_id(row: Row) -> str | None:
    for column in _ID_COLUMNS:
        value = row.get(column)
        if isinstance(value, (int, str)) and not isinstance(value, bool):
            return str(value)
    return None


def _origin(row: Row, source: LabelledSource) -> str:
    """The row's ``source`` column; "" if it is missing, or is the text or the label."""
    value = row.get(_SOURCE_COLUMN)
    is_read_otherwise = _SOURCE_COLUMN in (*source.text, source.label)
    return value if isinstance(value, str) and not is_read_otherwise else ""


def _ids(own: Sequence[str | None]) -> tuple[str, ...]:
    present = [value for value in own if value is not None]
    if len(set(present)) == len(own):
        return tuple(present)
    return tuple(str(place) for place in range(len(own)))


def _numbers(found: Sequence[tuple[str, object]]) -> npt.NDArray[np.float32]:
    """The labels as numbers; if all are -1, the labels are hidden."""
    values = np.array([_number(value, place) for place, value in found], np.float32)
    if (values == -1).all():
        raise DataError(_hidden(found[0][0], ""))
    return values


def _number(value: object, place: str) -> float:
    if not isinstance(value, (int, float, str)) or isinstance(value, bool):
        raise DataError(f"{place}: {shown(value)} found, expected a number")
    try:
        number = float(value)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{place}: {shown(value)} found, expected a number") from error
    if not math.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        raise DataError(f"{place}: {shown(value)} found, expected a finite number")
    return number


def _classes(
    found: Sequence[tuple[str, object]], given: Sequence[str], given_by: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The labels as indices into the names, and the names."""
    labels = [(place, _name(value, place)) for place, value in found]
    names = tuple(given) or _names_in(labels)
    places = {name: place for place, name in enumerate(names)}
    if not any(_INTEGER.fullmatch(name) for name in names):
        places |= {str(place): place for place in range(len(names))}
    for place, label in labels:
        if label not in places:
            raise DataError(_hidden(place) if label == _HIDDEN else _unknown(place, label, names))
    by_number = next((place for place, label in labels if label not in names), None)
    if by_number is not None and given_by:
        pairs = ", ".join(f"{number} = {name}" for number, name in enumerate(names))
        note(
            f"{by_number}: a number; numbers here and the classes of {given_by} are matched by their numbers"
            f"; taken as: {pairs}"
        )
    return np.array([places[label] for _, label in labels], np.int64), names


def _names_in(labels: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    different = {label for _, label in labels}
    for place, label in labels:
        if label == _HIDDEN:
            raise DataError(_hidden(place))
    numeric = all(_INTEGER.fullmatch(label) for label in different)
    names = sorted(different, key=int) if numeric else sorted(different)
    if len(names) < 2:
        raise DataError(
            f"{labels[0][0]}: every label is {names[0]}; expected at least two classes; "
            "if there are others, list all of them in labels"
        )
    return tuple(names)


def _name(value: object, place: str) -> str:
    """A label as text; 1.0 is 1, because Parquet stores it so if another row has no label."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if value is None or value == "":
        raise DataError(f"{place}: no label; expected the name or number of a class; remove the row")
    raise DataError(f"{place}: {shown(value)} found, expected the name or number of a class")


_IF_A_CLASS = ' (if it is a class of its own, list all classes: labels: ["-1", …])'


def _hidden(place: str, otherwise: str = _IF_A_CLASS) -> str:
    hint = f"; use a split that has them{otherwise}"
    return f"{place}: the label is -1, which marks hidden labels of test sets{hint}"


def _unknown(place: str, label: str, names: Sequence[str]) -> str:
    return f"{place}: label {label} is not one of the classes{did_you_mean(label, names)}"
