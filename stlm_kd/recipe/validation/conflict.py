"""Conflicts between parts of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from stlm_kd.errors import did_you_mean

Place: TypeAlias = tuple[str | int, ...]
Conflict: TypeAlias = tuple[tuple[Place, ...], str]
"""The conflicting places, the first of which the message is reported at; and the message."""


def known_names(name: str, names: Sequence[str]) -> str:
    """A hint with the nearest known name."""
    return did_you_mean(name, names) or "; it has none"


def not_a_teacher(name: str, names: Sequence[str]) -> str:
    """The message for a name that none of the recipe's teachers has."""
    return f"{name} is not a teacher of this recipe{known_names(name, names)}"


def repeated(place: Place, values: Sequence[object], message: str = "{} given twice") -> Iterator[Conflict]:
    """The values of a list that stand in it before."""
    for i, value in enumerate(values):
        if values.index(value) != i:
            yield ((*place, i),), message.format(value)


def within(place: Place, conflicts: Iterable[Conflict]) -> Iterator[Conflict]:
    """The conflicts of a recipe that stands at a place of another recipe."""
    for places, message in conflicts:
        yield tuple((*place, *inner) for inner in places), message
