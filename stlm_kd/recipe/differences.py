"""The differences between two recipes' values, place by place."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

from stlm_kd.recipe.yaml import Plain
from stlm_kd.teachers import COMBINED

_NAMES = {"teachers": "name", "objectives": "loss", "eval": "suite"}
"""The key that names an entry of a list."""


def differences(before: Plain, after: Plain, place: str = "") -> list[tuple[str, Plain, Plain]]:
    """The differences between two recipes' plain values: place, first value, second value; None for no value.

    Places are dotted. Entries of lists of mappings are matched by name, as in ``teachers[qwen].model``, so an
    entry that is added does not change the others; entries that only change places are one difference of the
    list. Other lists differ as a whole.
    """
    if json.dumps(before, sort_keys=True) == json.dumps(after, sort_keys=True):
        return []
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*before, *(key for key in after if key not in before)]
        inner = [(f"{place}.{key}" if place else key, before.get(key), after.get(key)) for key in keys]
        return [change for here, one, other in inner for change in differences(one, other, here)]
    if isinstance(before, list) and isinstance(after, list):
        ours, theirs = _named(place, before), _named(place, after)
        if ours is None or theirs is None:
            return [(place, before, after)]
        keys = [*ours, *(key for key in theirs if key not in ours)]
        inner = [(f"{place}[{key}]", ours.get(key), theirs.get(key)) for key in keys]
        found = [change for here, one, other in inner for change in differences(one, other, here)]
        return found or [(f"{place} (order)", [*ours], [*theirs])]
    return [(place, before, after)]


def _named(place: str, entries: Sequence[Plain]) -> dict[str, Plain] | None:
    """The mappings of a list by name or index, repeated names numbered; None for a list of other things."""
    key = _NAMES.get(place.rpartition(".")[2])
    found: dict[str, Plain] = {}
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            return None
        name = str(index if key is None else entry.get(key, index))
        if key == "loss" and entry.get("teacher", COMBINED) != COMBINED:
            name += f"@{entry['teacher']}"
        numbered = (f"{name} {number}" for number in itertools.count(2))
        found[next(free for free in itertools.chain([name], numbered) if free not in found)] = entry
    return found
