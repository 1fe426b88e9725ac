"""``sweep``: named lists of changes in a recipe, of which a command runs one, a run for each change.

::

    sweep:
      depth:
        - {name: three, "student.init_from.layers": [0, 2, 4]}
        - {name: six, "student.init_from.layers": every-other, train.epochs: 2}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from stlm_kd.errors import RecipeError, RecipeFault, UsageError, did_you_mean
from stlm_kd.recipe.overrides import split
from stlm_kd.recipe.yaml import Node

SWEEP = "sweep"
MAX_VARIANTS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}")


class Change(str):
    """``key.path=value`` that a recipe's file holds; ``origin`` is that of the file's nodes."""

    __slots__ = ("origin",)
    origin: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of a recipe: its name, and ``key.path=value`` for each of its keys."""

    name: str
    overrides: tuple[str, ...]


def without_sweep(root: Node) -> Node:
    """The tree without its lists of changes."""
    if not isinstance(root.value, dict) or SWEEP not in root.value:
        return root
    return Node({key: node for key, node in root.value.items() if key != SWEEP}, root.line, root.origin)


def variants(root: Node, name: str, *, origin: str) -> tuple[Variant, ...]:
    """The changes of one list of a recipe.

    Args:
        root: The recipe's tree.
        name: The list.
        origin: The recipe's name in messages.

    Raises:
        UsageError: The recipe has no such list.
        RecipeError: Not a list of two or more mappings of keys with names that differ; holds all faults.
    """
    lists = root.value.get(SWEEP) if isinstance(root.value, dict) else None
    known = lists.value if lists is not None and isinstance(lists.value, dict) else {}
    if name not in known:
        raise UsageError(
            f"--sweep {name}: {origin} has no such list of changes{did_you_mean(name, known)}; expected the "
            "name of one under its key sweep, or key.path=[value, value, …]"
        )
    entries = known[name]
    place = f"{SWEEP}.{name}"
    if not isinstance(entries.value, list) or not 2 <= len(entries.value) <= MAX_VARIANTS:
        message = f"expected a list of 2 to {MAX_VARIANTS} mappings of keys to values"
        raise RecipeError(origin, [RecipeFault(place, message, entries.line)])
    faults = [fault for i, entry in enumerate(entries.value) for fault in _faults(entry, f"{place}[{i}]")]
    if faults:
        raise RecipeError(origin, faults)
    found = [_variant(entry, str(i + 1)) for i, entry in enumerate(entries.value)]
    names = [variant.name for variant in found]
    repeated = sorted({one for one in names if names.count(one) > 1})
    if repeated:
        raise RecipeError(origin, [RecipeFault(place, f"the name {repeated[0]} twice", entries.line)])
    return tuple(found)


def _faults(entry: Node, place: str) -> Iterator[RecipeFault]:
    if not isinstance(entry.value, dict) or not entry.value:
        yield RecipeFault(place, "expected a mapping such as {name: long, train.steps: 1000}", entry.line)
        return
    for key, node in entry.value.items():
        if key == "name":
            if not isinstance(node.value, (str, int)) or not _NAME.fullmatch(str(node.value)):
                message = "expected up to 41 letters, digits, dots, dashes and underscores"
                yield RecipeFault(f"{place}.name", message, node.line)
            continue
        try:
            split(f"{key}=0")
        except UsageError:
            yield RecipeFault(place, f"{key!a}: expected a key of the recipe such as train.steps", node.line)


def _variant(entry: Node, number: str) -> Variant:
    assert isinstance(entry.value, dict), "checked"
    named = entry.value.get("name")
    changes = [_change(key, node) for key, node in entry.value.items() if key != "name"]
    return Variant(number if named is None else str(named.value), tuple(changes))


def _change(key: str, node: Node) -> Change:
    change = Change(f"{key}={json.dumps(node.plain())}")
    change.origin = node.origin
    return change
