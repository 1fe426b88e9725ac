"""Find and read recipes, built-in names and files, and apply overrides, without validation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, did_you_mean
from stlm_kd.recipe import overrides as dotted
from stlm_kd.recipe.yaml import LARGEST, Node, YamlError, parse

MOST_RECIPES = 32
"""Maximum number of recipes that one recipe may include for its teachers."""


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A recipe or a list of objectives of the package.

    Attributes:
        name: Its name in commands, or in recipes.
        kind: ``recipe`` or ``objectives``.
        path: Its file.
        purpose: The first line of its header.
    """

    name: str
    kind: Literal["recipe", "objectives"]
    path: Path
    purpose: str


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe as written, with overrides applied and the recipes that it names inlined.

    Attributes:
        origin: Its name in messages.
        root: The tree.
        faults: Overrides of places that do not exist, and named recipes that cannot be read.
    """

    origin: str
    root: Node
    faults: tuple[RecipeFault, ...]


def folder() -> Path:
    """The folder of the built-in recipes."""
    import stlm_kd.recipes

    (place,) = stlm_kd.recipes.__path__
    return Path(place)


def built_in() -> list[BuiltIn]:
    """The recipes of the package, by name."""
    return [BuiltIn(path.stem, "recipe", path, purpose(path)) for path in sorted(folder().glob("*.yaml"))]


def built_in_objectives() -> list[BuiltIn]:
    """The lists of objectives of the package, which a recipe may name (``objectives: NAME``)."""
    paths = sorted((folder() / "objectives").glob("*.yaml"))
    return [BuiltIn(path.stem, "objectives", path, purpose(path)) for path in paths]


def purpose(path: Path) -> str:
    """The first line of a recipe's header comment, or ""."""
    first = path.read_text(encoding="utf-8").splitlines()[:1]
    if not first or not first[0].startswith("#"):
        return ""
    return first[0].lstrip("# ").removeprefix("Purpose:").strip()


def locate(name: str, *, beside: Path | None = None) -> Path:
    """The file of a recipe: an existing file, else a built-in name with or without ``.yaml``.

    Args:
        name: A file or a built-in name; a built-in name may have the prefix ``recipes/``.
        beside: The folder of relative paths; None for the current one.

    Raises:
        MissingResourceError: No such recipe; the message names the nearest.
    """
    path = Path(name).expanduser()
    path = path if beside is None or path.is_absolute() else beside / path
    if path.is_file():
        return path
    known = {recipe.name: recipe.path for recipe in built_in()}
    bare = name.removeprefix("recipes/").removesuffix(".yaml")
    if bare in known:
        return known[bare]
    if path.is_dir():
        raise MissingResourceError(
            f"{name}: a folder; expected a recipe file or the name of a built-in recipe (stlm-kd recipe list)"
        )
    raise MissingResourceError(f"{name}: neither a file nor a built-in recipe{did_you_mean(bare, known)}")


def read(name: str, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe as written, with overrides applied in order.

    Raises:
        MissingResourceError: No such recipe.
        RecipeError: Not YAML, or not plain data.
        UsageError: An override that is not ``key.path=value``.
    """
    path = locate(name)
    try:
        root = parse(text_of(path))
    except YamlError as error:
        raise RecipeError(_display_path(path), error.faults) from error
    return document(root, overrides, origin=_display_path(path), chain=(path,))


def document(root: Node, overrides: Sequence[str], *, origin: str, chain: tuple[Path, ...] = ()) -> Document:
    """A recipe's tree with overrides applied in order, and all that it names read.

    Args:
        root: The tree; changed in place.
        overrides: ``key.path=value``.
        origin: The recipe's name in messages.
        chain: The file that the tree is from, if any.

    Raises:
        UsageError: An override is not of this form.
    """
    reader = _Reader()
    for override in overrides:
        _expand_objectives(root)
        found = dotted.apply(root, override, lambda node: reader.expand(node, "teachers[].recipe", chain))
        if found is not None:
            reader.faults.append(found)
    reader.expand_all(root, chain)
    once = {(found.message, found.line): found for found in reader.faults}  # a recipe may be read twice
    return Document(origin, root, tuple(once.values()))


def text_of(path: Path) -> str:
    """The text of a recipe file; a file that is too large is refused without reading it.

    Raises:
        MissingResourceError: The file cannot be read.
        RecipeError: Too large, or not UTF-8.
    """
    try:
        if path.stat().st_size > 4 * LARGEST:
            raise RecipeError(
                _display_path(path), [RecipeFault("", f"larger than {4 * LARGEST:,} bytes; not a recipe")]
            )
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingResourceError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        fault = RecipeFault("", f"byte {error.start} is not UTF-8; save the file as UTF-8")
        raise RecipeError(_display_path(path), [fault]) from error


def _display_path(path: Path) -> str:
    """The path relative to the current folder if it is below it."""
    absolute, here = path.resolve(), Path.cwd()
    return os.fspath(absolute.relative_to(here)) if absolute.is_relative_to(here) else os.fspath(path)


def _expand_objectives(node: Node) -> None:
    """Replace the name of a list of objectives by the list; validation reports unknown names."""
    named = node.value.get("objectives") if isinstance(node.value, dict) else None
    if named is None or not isinstance(named.value, str):
        return
    known = {entry.name: entry.path for entry in built_in_objectives()}
    if named.value in known:
        path = known[named.value]
        named.value = parse(text_of(path), origin=_display_path(path)).value


class _Reader:
    """Replaces the names of recipes and of lists of objectives by their content.

    A chain is the files that lead to a node, each of which names the next; the last contains the node.
    """

    def __init__(self) -> None:
        self.faults: list[RecipeFault] = []
        self.num_read = 0

    def expand_all(self, node: Node, chain: tuple[Path, ...], place: str = "") -> None:
        """Read all that a recipe and its teachers' recipes name; unreadable ones keep their names."""
        _expand_objectives(node)
        teachers = node.value.get("teachers") if isinstance(node.value, dict) else None
        entries = teachers.value if teachers is not None and isinstance(teachers.value, list) else []
        for i, entry in enumerate(entries):
            named = entry.value.get("recipe") if isinstance(entry.value, dict) else None
            if named is not None:
                self.expand(named, f"{place}teachers[{i}].recipe", chain)

    def expand(self, node: Node, place: str, chain: tuple[Path, ...]) -> None:
        """Read the recipe that a node of a teacher names, and all that it names."""
        if not isinstance(node.value, str):  # written inline, or inlined before
            self.expand_all(node, chain, f"{place}.")
            return
        try:
            path = locate(node.value, beside=None if node.line is None else chain[-1].parent)
            self.num_read += 1
            if path.resolve() in [outer.resolve() for outer in chain]:
                self.faults.append(RecipeFault(place, f"{node.value} includes itself", node.line))
            elif self.num_read > MOST_RECIPES:
                message = f"{node.value} is one too many; expected at most {MOST_RECIPES} recipes"
                self.faults.append(RecipeFault(place, message, node.line))
            else:
                node.value = parse(text_of(path), origin=_display_path(path)).value
                self.expand_all(node, (*chain, path), f"{place}.")
        except MissingResourceError as error:
            self.faults.append(RecipeFault(place, str(error), node.line))
        except (YamlError, RecipeError) as error:
            self.faults += [RecipeFault(place, f"{node.value}: {found}", node.line) for found in error.faults]
