"""Load and validate a recipe, collecting all its faults; its resolved text and hash."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel, ValidationError

from stlm_kd.artifacts.run_dir import RECIPE
from stlm_kd.errors import RecipeError, RecipeFault, UsageError
from stlm_kd.extensions import load_extensions
from stlm_kd.recipe.locate import Document, document, read, run_name
from stlm_kd.recipe.paths import Named, absolute_paths, named_in
from stlm_kd.recipe.schema.fields import LENIENT, UNKNOWN_KEY, RecipePath
from stlm_kd.recipe.schema.root import Recipe
from stlm_kd.recipe.schema.training import Engine
from stlm_kd.recipe.validation.conflict import Conflict, Place
from stlm_kd.recipe.validation.deepspeed import deepspeed_conflicts
from stlm_kd.recipe.validation.overlap import overlaps
from stlm_kd.recipe.validation.recipe import conflicts
from stlm_kd.recipe.yaml import Node, Plain, dump
from stlm_kd.teachers import COMBINED

Found: TypeAlias = tuple[Place, str, str]
"""Place, kind, message."""


def load(name: str, overrides: Sequence[str] = (), *, is_stored: bool = False) -> Recipe:
    """Load and validate a recipe, with everything resolved that needs no model.

    Args:
        name: An address, a file, a folder with ``recipe.yaml``, or a built-in name.
        overrides: ``key.path=value``, applied in order.
        is_stored: Whether the recipe is that of a finished run and is only read; overlap of training and
            validation data is then not a fault.

    Raises:
        MissingResourceError: No such recipe.
        UsageError: An override is not of the form ``key.path=value``.
        RecipeError: The recipe is invalid; holds all faults found.
    """
    return checked(read(name, overrides), is_stored=is_stored)


def named_recipe(recipe: Recipe | str, overrides: Sequence[str], name: str | None) -> tuple[Recipe, str]:
    """A recipe as given, or by name as to ``load``; and the name of its runs: its file's, or ``recipe``.

    Raises UsageError for overrides of a recipe that is loaded already; others as ``load``.
    """
    if not isinstance(recipe, Recipe):
        return load(recipe, overrides), name or run_name(recipe)
    if overrides:
        raise UsageError("overrides change a recipe that is given by name; pass them to load_recipe instead")
    return recipe, name or "recipe"


def from_values(
    values: dict[str, Plain], overrides: Sequence[str] = (), *, origin: str, is_stored: bool = False
) -> Recipe:
    """A recipe from values in place of a file; ``origin`` is its name in messages, the rest as ``load``."""
    return checked(document(_tree(values), overrides, origin=origin), is_stored=is_stored)


def checked(document: Document, *, is_stored: bool = False) -> Recipe:
    """Validate the recipe of a document; arguments and errors as ``load``."""
    load_extensions()
    values = document.root.plain()
    try:
        recipe = Recipe.model_validate(values)
        found: list[Found] = []
    except ValidationError as error:
        found = [(tuple(line["loc"]), line["type"], line["msg"]) for line in error.errors(include_url=False)]
        found = [entry for entry in found if not _reported(document.root, entry[0])]
        salvaged = partial_recipe(values, found)
        broken = [place for place, kind, _ in found if kind != UNKNOWN_KEY]
        more = () if salvaged is None else _all_conflicts(salvaged, is_stored)
        found += [(c[0][0], "fault", c[1]) for c in more if not _touches(c, broken)]
    else:
        found = [(places[0], "fault", message) for places, message in _all_conflicts(recipe, is_stored)]
    faults = [*document.faults, *(_fault(document.root, place, message) for place, _, message in found)]
    if faults:
        raise RecipeError(document.origin, sorted(faults, key=lambda fault: fault.line or 0))
    return recipe


def _all_conflicts(recipe: Recipe, is_stored: bool) -> Iterator[Conflict]:
    yield from conflicts(recipe)
    if not is_stored:
        yield from overlaps(recipe)
        yield from deepspeed_conflicts(recipe)


def plain(part: BaseModel) -> dict[str, Plain]:
    """A part as plain values with defaults; fields that are null by default and null here are omitted."""
    return {name: _written(value) for name, value in values_of(part).items()}


def values_of(part: BaseModel) -> dict[str, Plain]:
    """Like ``plain``, but with relative paths as ``RecipePath``: ``from_values`` gives the same part."""
    fields = type(part).model_fields
    given = ((name, value) for name, value in part if value is not None or fields[name].default is not None)
    return {name: _plain(value) for name, value in given}


def paths_of(recipe: Recipe) -> dict[str, str]:
    """The absolute paths of a recipe's relative ones, for the record of a run."""
    return absolute_paths(_tree(values_of(recipe)))


def names_in(recipe: Recipe) -> list[Named]:
    """All files, folders and models that a recipe and the recipes of its teachers name."""
    return [*named_in(_tree(values_of(recipe)))]


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with all defaults and its teachers' recipes inlined, as YAML."""
    return dump(plain(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of the values that results depend on: not of file names, comments, order and engine."""
    return hash_of(without_engine(plain(recipe)))


def without_engine(values: Plain) -> Plain:
    """A recipe's plain values with the default engine, in its teachers' recipes too.

    An engine changes results only by rounding, so a run may go on under another one.
    """
    if not isinstance(values, dict):
        return values
    found = {**values, "engine": plain(Engine())} if "engine" in values else {**values}
    if isinstance(teachers := values.get("teachers"), list):
        found["teachers"] = [
            {**one, "recipe": without_engine(one["recipe"])}
            if isinstance(one, dict) and "recipe" in one
            else one
            for one in teachers
        ]
    return found


def hash_of(values: Plain) -> str:
    """SHA-256 (hex) of plain values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def term_names(recipe: Recipe) -> tuple[str, ...]:
    """A name for each objective: its loss, ``@teacher`` if it names one, numbered if repeated."""
    names: list[str] = []
    for objective in recipe.objectives:
        name = objective.loss if objective.teacher == COMBINED else f"{objective.loss}@{objective.teacher}"
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        names.append(next(one for one in itertools.chain([name], numbered) if one not in names))
    return tuple(names)


def _plain(value: object) -> Plain:
    if isinstance(value, BaseModel):
        return values_of(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    assert value is None or isinstance(value, (bool, int, float, str)), f"{value!r} is not plain"
    return value


def _written(value: Plain) -> Plain:
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_written(item) for item in value]
    return value.written if isinstance(value, RecipePath) else value


def _tree(values: Plain) -> Node:
    if isinstance(values, dict):
        return Node({key: _tree(value) for key, value in values.items()})
    return Node([_tree(value) for value in values] if isinstance(values, list) else values)


def partial_recipe(values: Plain, found: Sequence[Found]) -> Recipe | None:
    """The recipe without invalid values, to find further faults; None if too little is left."""
    for place, kind, _ in found:
        if kind != UNKNOWN_KEY and place:
            values = _without(values, place)
    try:
        return Recipe.model_validate(values, context={LENIENT: True})
    except ValidationError:
        return None


def _without(values: Plain, place: Place) -> Plain:
    first, rest = place[0], place[1:]
    if isinstance(values, dict) and first in values:
        kept = {key: value for key, value in values.items() if key != first}
        return {**kept, str(first): _without(values[str(first)], rest)} if rest else kept
    if isinstance(values, list) and isinstance(first, int) and first < len(values) and rest:
        return [_without(value, rest) if i == first else value for i, value in enumerate(values)]
    return values


def _touches(conflict: Conflict, broken: Sequence[Place]) -> bool:
    """Whether a conflict may exist only because an invalid value was removed."""
    return any(
        place[: len(other)] == other or other[: len(place)] == place
        for place in conflict[0]
        for other in broken
    )


def _reported(root: Node, place: Place) -> bool:
    """Whether the place is a teacher's recipe that could not be read, which is already a fault."""
    node, known = _walk(root, place)
    of_teacher = place[-3:-2] == ("teachers",) and place[-1] == "recipe"
    return of_teacher and known == len(place) and isinstance(node.value, str)


def _walk(root: Node, place: Place) -> tuple[Node, int]:
    """The node at a place, or the last existing one on the path to it, and its depth."""
    node = root
    for count, step in enumerate(place):
        if isinstance(node.value, dict) and step in node.value:
            node = node.value[str(step)]
        elif isinstance(node.value, list) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
        elif step != 0 or isinstance(node.value, list):
            return node, count
    return node, len(place)


def _fault(root: Node, place: Place, message: str) -> RecipeFault:
    node, _ = _walk(root, place)
    shown = _dotted(root, place)
    if not node.origin:
        return RecipeFault(shown, message, node.line)
    if node.line is not None:
        return RecipeFault(f"{shown} ({node.origin} line {node.line})", message)
    key = node.origin.partition("=")[0]
    same = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", key) == shown
    return RecipeFault(node.origin if same else f"{shown} ({node.origin})", message)


def _dotted(root: Node, place: Place) -> str:
    """The place in dotted form; entry 0 of a value written without a list is omitted."""
    text = ""
    for count, step in enumerate(place):
        if isinstance(step, int):
            parent, reached = _walk(root, place[:count])
            if step or reached < count or isinstance(parent.value, list):
                text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def recipe_of(run: Path) -> Recipe:
    """The recipe of a run's folder, even if newer rules refuse to train it; errors as ``load``."""
    return load(str(run / RECIPE), is_stored=True)
