"""The differences between two recipes by meaning, and between their locks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from stlm_kd.errors import printable
from stlm_kd.recipe.differences import differences
from stlm_kd.recipe.load import checked, plain
from stlm_kd.recipe.locate import find, lock_beside, read_source
from stlm_kd.recipe.lock import Lock, drift
from stlm_kd.recipe.yaml import Plain

Group = Literal["what is trained", "on what", "how", "scored by", "pins"]

_GROUPS: Mapping[str, Group] = {"task": "what is trained", "student": "what is trained", "data": "on what"}
_PINS = ("revision",)


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        group: The part of the recipe's meaning.
        place: Dotted; entries of lists that have names by name, as in ``teachers[qwen].model``.
        before: The value of the first; None if it has none.
        after: The value of the second; None if it has none.
    """

    group: Group
    place: str
    before: Plain
    after: Plain

    def __str__(self) -> str:
        words = f"{_words(self.before)} \N{RIGHTWARDS ARROW} {_words(self.after)}"
        return f"{printable(self.place, keep='')}: {words}"


@dataclass(frozen=True, slots=True)
class Difference:
    """All differences, in the order of the groups."""

    changes: tuple[Change, ...]

    def as_text(self) -> str:
        """One line a change, under the names of the groups; "no difference" if there is none."""
        lines = []
        for group in get_args(Group):
            inside = [f"  {change}" for change in self.changes if change.group == group]
            lines += [group, *inside] if inside else []
        return "\n".join(lines) or "no difference"

    def as_json(self) -> list[dict[str, Plain]]:
        """Plain values, in the same order."""
        return [asdict(change) for change in self.changes]


def compare_recipes(before: str, after: str) -> Difference:
    """The differences between two recipes, and between the locks that lie beside both.

    Args:
        before: An address, file, folder or built-in name, also a run's folder.
        after: Another.

    Raises:
        MissingResourceError: There is no such recipe.
        RecipeError: A recipe or a lock is invalid.
    """
    sources = find(before), find(after)
    first, second = (plain(checked(read_source(source), is_stored=True)) for source in sources)
    return difference(first, second, (lock_beside(sources[0]), lock_beside(sources[1])))


def difference(
    before: Mapping[str, Plain],
    after: Mapping[str, Plain],
    locks: tuple[Lock | None, Lock | None] = (None, None),
) -> Difference:
    """The differences between two resolved recipes, as ``stlm_kd.recipe.plain`` gives them.

    Args:
        before: The first recipe, with defaults.
        after: The second.
        locks: Their locks, which are compared if both have one.
    """
    found = [
        Change(_group(place), place, *values) for place, *values in differences(dict(before), dict(after))
    ]
    first, second = locks
    if first is not None and second is not None:
        forth = {one.place: (one.locked, one.found) for one in drift(first, second)}
        back = {one.place: (one.found, one.locked) for one in drift(second, first)}
        found += [Change("pins", place, *values) for place, values in sorted((back | forth).items())]
    groups = get_args(Group)
    return Difference(tuple(sorted(found, key=lambda change: groups.index(change.group))))


def _group(place: str) -> Group:
    top = place.replace("[", ".").partition(".")[0]
    if place.rpartition(".")[2] in _PINS:
        return "pins"
    return "scored by" if top == "eval" else _GROUPS.get(top, "how")


def _words(value: Plain) -> str:
    if value is None:
        return "not given"
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), keep="")
    return text if len(text) <= 80 else f"{text[:79]}\N{HORIZONTAL ELLIPSIS}"
