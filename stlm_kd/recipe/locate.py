"""Find and read recipes, built-in names and files, and apply overrides, without validation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stlm_kd.artifacts.record import read_record
from stlm_kd.artifacts.run_dir import RECORD
from stlm_kd.errors import (
    CheckpointError,
    MissingResourceError,
    RecipeError,
    RecipeFault,
    UsageError,
    did_you_mean,
)
from stlm_kd.recipe import overrides as dotted
from stlm_kd.recipe.extends import extended
from stlm_kd.recipe.foreign import check_fetched, foreign_faults
from stlm_kd.recipe.lock import LOCK_FILE, MAX_LOCK, Lock, read_lock
from stlm_kd.recipe.paths import Start, locate_paths
from stlm_kd.recipe.sweep import Change, Variant, variants, without_sweep
from stlm_kd.recipe.yaml import LARGEST, Node, YamlError, parse
from stlm_kd.recipes import built_in as built_in
from stlm_kd.recipes import built_in_objectives as built_in_objectives
from stlm_kd.recipes import folder as folder
from stlm_kd.sharing.address import RECIPE as RECIPE_FILE
from stlm_kd.sharing.address import HubAddress, WebAddress, parse_address
from stlm_kd.sharing.names import user_path

MOST_RECIPES = 32
"""Maximum number of recipes that one recipe may include for its teachers."""


@dataclass(frozen=True, slots=True)
class Document:
    """A recipe as written, with overrides applied and the recipes that it names inlined.

    ``origin`` is its name in messages; ``faults`` are overrides of places that do not exist, and named
    recipes that cannot be read; ``sources`` are the files that were read, its own first.
    """

    origin: str
    root: Node
    faults: tuple[RecipeFault, ...]
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a recipe.

    Attributes:
        path: Where it lies.
        origin: Its name in messages: a path, or the address that it was fetched from, with commit or hash.
        folder: Contains all that a fetched recipe may name; None for recipes of this machine.
    """

    path: Path
    origin: str
    folder: Path | None = None


def find(name: str, *, beside: Source | None = None) -> Source:
    """The recipe of a name: an address, a file, a folder with ``recipe.yaml``, or a built-in name.

    Args:
        name: The name; a built-in name may have the prefix ``recipes/`` and the suffix ``.yaml``.
        beside: The recipe that names it, in whose folder relative paths start; None: the current folder. A
            fetched recipe cannot name other files of this machine.

    Raises:
        MissingResourceError: No such recipe; the message names the nearest. Or it cannot be reached.
        RecipeError: A fetched recipe is refused.
        UsageError: A malformed address.
    """
    address = parse_address(name)
    if address is not None:
        from stlm_kd.sharing.fetch import fetch

        found = fetch(address, check=check_fetched)
        return Source(found.file, str(found.origin), found.folder)
    is_plain = not name.startswith(("/", "~")) and ".." not in Path(name).parts
    if beside is None or beside.folder is None:
        path = user_path(name)
        path = path if beside is None or path.is_absolute() else beside.path.parent / path
    elif is_plain:
        path = beside.path.parent / name
    else:
        raise MissingResourceError(f"{name}: outside the folder of {beside.origin}")
    inside = path / RECIPE_FILE if (path / RECIPE_FILE).is_file() else path
    if inside.is_file():
        if beside is None or beside.folder is None:
            return Source(inside, _display_path(inside))
        return Source(
            inside, f"{beside.origin} {inside.relative_to(beside.folder).as_posix()}", beside.folder
        )
    known = {recipe.name: recipe.path for recipe in built_in()}
    bare = name.removeprefix("recipes/").removesuffix(".yaml")
    if bare in known:
        return Source(known[bare], _display_path(known[bare]))
    if path.is_dir():
        raise MissingResourceError(
            f"{name}: a folder; expected a recipe file or the name of a built-in recipe (stlm-kd recipe "
            f"list), or a folder with {RECIPE_FILE}"
        )
    raise MissingResourceError(f"{name}: neither a file nor a built-in recipe{did_you_mean(bare, known)}")


def locate(name: str) -> Path:
    """The file of a recipe; name and errors as ``find``."""
    return find(name).path


def lock_beside(source: Source) -> Lock | None:
    """The lock in the folder of a recipe; None if there is none.

    Raises:
        RecipeError: It is invalid.
    """
    path = source.path.with_name(LOCK_FILE)
    return read_lock(text_of(path), origin=_display_path(path)) if path.is_file() else None


def settled(name: str) -> str:
    """The recipe's name with the commit that its address means now, so that all files are of one commit.

    Args:
        name: As to ``find``, whose errors are raised; what is no address is returned as it is.
    """
    return name if parse_address(name) is None else find(name).origin


def run_name(recipe: str) -> str:
    """The default name of the runs of a recipe: of its file or folder, however the path to it is written.

    At an address ``recipe.yaml`` has the name of what contains it.

    >>> [run_name(name) for name in ("r/recipe.yaml", "hf://alice/tiny@v1", "git+https://h.org/b.git#t.yaml")]
    ['recipe', 'tiny', 't']
    """
    address = parse_address(recipe)
    if address is None:
        path = Path(recipe)
        return path.resolve().name if path.is_dir() else path.stem
    if isinstance(address, WebAddress):
        path = Path(address.url)
    else:
        container = address.repo if isinstance(address, HubAddress) else address.url
        path = Path(container.removesuffix(".git"), address.file)
    return path.parent.name if path.name == RECIPE_FILE and path.parent.name else path.stem


def read(name: str, overrides: Sequence[str] = ()) -> Document:
    """Read a recipe as written, with all that it extends, and overrides applied in order.

    Raises MissingResourceError if there is none; RecipeError if it is not plain YAML; UsageError as
    ``document``.
    """
    return read_source(find(name), overrides)


def read_source(source: Source, overrides: Sequence[str] = ()) -> Document:
    """Like ``read``, for a recipe that was found."""
    reader = _Reader()
    return document(reader.tree(source), overrides, origin=source.origin, chain=(source,), reader=reader)


def sweep_list(name: str, sweep: str) -> tuple[Variant, ...]:
    """The changes of a list in a recipe's ``sweep``.

    Raises:
        UsageError: The recipe has no such list.
        MissingResourceError, RecipeError: As ``read``; or the list is malformed.
    """
    source = find(name)
    root = _Reader().tree(source)
    if faults := foreign_faults(root):
        raise RecipeError(source.origin, faults)
    return variants(root, sweep, origin=source.origin)


def document(
    root: Node,
    overrides: Sequence[str],
    *,
    origin: str,
    chain: tuple[Source, ...] = (),
    reader: _Reader | None = None,
) -> Document:
    """A recipe's tree with overrides applied in order, and all that it names read.

    Args:
        root: The tree; changed in place.
        overrides: ``key.path=value``.
        origin: The recipe's name in messages.
        chain: The file that the tree is from, if any.
        reader: What read the tree, if anything.

    Raises:
        UsageError: An override is not of this form.
    """
    reader = reader or _Reader()
    for override in overrides:
        _expand_objectives(root)
        found = dotted.apply(root, override, lambda node: reader.expand(node, "teachers[].recipe", chain))
        if found is not None:
            reader.faults.append(found)
    reader.expand_all(root, chain)
    once = {(found.message, found.line): found for found in reader.faults}  # a recipe may be read twice
    root = without_sweep(root)
    written = {str(one): one.origin for one in overrides if isinstance(one, Change)}
    faults = foreign_faults(root) or locate_paths(root, lambda node: reader.start_of(node, chain, written))
    return Document(origin, root, (*once.values(), *faults), tuple(reader.sources.values()))


def text_of(path: Path) -> str:
    """The text of a recipe or a lock; MissingResourceError, or RecipeError if too large or not UTF-8."""
    largest = 4 * (MAX_LOCK if path.name == LOCK_FILE else LARGEST)
    try:
        if path.stat().st_size > largest:
            raise RecipeError(
                _display_path(path), [RecipeFault("", f"larger than {largest:,} bytes; not a recipe")]
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
        self.sources: dict[str, Source] = {}

    def tree(self, source: Source, *, is_named: bool = False) -> Node:
        """The tree of a recipe laid over what it extends; ``is_named``: by another recipe.

        Raises:
            RecipeError: Not plain YAML, or a fault of ``extends``.
            MissingResourceError, UsageError: What it extends cannot be found.
        """
        root = self._parsed(source, is_named=is_named)
        return extended(root, source, self._ancestor)

    def _ancestor(self, name: str, beside: Source) -> tuple[Node, Source]:
        source = find(name, beside=beside)
        return self._parsed(source, is_named=True), source

    def _parsed(self, source: Source, *, is_named: bool) -> Node:
        self.sources[source.origin] = source
        is_shown = is_named or source.folder is not None  # faults of the recipe itself name lines alone
        try:
            root = parse(text_of(source.path), origin=source.origin if is_shown else "")
        except YamlError as error:
            raise RecipeError(source.origin, error.faults) from error
        if isinstance(root.value, dict) and {"format", "made"} <= root.value.keys():
            message = "a lock, not a recipe; name the recipe that it lies beside"
            raise RecipeError(source.origin, [RecipeFault("", message)])
        return root

    def start_of(self, node: Node, chain: tuple[Source, ...], written: Mapping[str, str]) -> Start | None:
        """Where the path in a node starts; None: in the current folder, without a further look.

        ``written`` are the overrides that a file holds, with the origin of its nodes.
        """
        origin = written.get(node.origin) if node.line is None else node.origin
        if origin is None or not chain:
            return None
        source = self.sources.get(origin, chain[0])
        if source.path.resolve().is_relative_to(folder().resolve()):
            return None
        if source.path.name == RECIPE_FILE and (record := source.path.with_name(RECORD)).is_file():
            with suppress(CheckpointError):
                return Start(Path(), recorded=read_record(record).paths)
        return Start(source.path.parent, is_fetched=source.folder is not None)

    def expand_all(self, node: Node, chain: tuple[Source, ...], place: str = "") -> None:
        """Read all that a recipe and its teachers' recipes name; unreadable ones keep their names."""
        _expand_objectives(node)
        teachers = node.value.get("teachers") if isinstance(node.value, dict) else None
        entries = teachers.value if teachers is not None and isinstance(teachers.value, list) else []
        for i, entry in enumerate(entries):
            named = entry.value.get("recipe") if isinstance(entry.value, dict) else None
            if named is not None:
                self.expand(named, f"{place}teachers[{i}].recipe", chain)

    def expand(self, node: Node, place: str, chain: tuple[Source, ...]) -> None:
        """Read the recipe that a node of a teacher names, and all that it names."""
        if not isinstance(node.value, str):  # written inline, or inlined before
            self.expand_all(node, chain, f"{place}.")
            return
        try:
            beside = None if node.line is None else self.sources.get(node.origin, chain[-1])
            source = find(node.value, beside=beside)
            self.num_read += 1
            if source.path.resolve() in [outer.path.resolve() for outer in chain]:
                self.faults.append(RecipeFault(place, f"{node.value} includes itself", node.line))
            elif self.num_read > MOST_RECIPES:
                message = f"{node.value} is one too many; expected at most {MOST_RECIPES} recipes"
                self.faults.append(RecipeFault(place, message, node.line))
            else:
                node.value = without_sweep(self.tree(source, is_named=True)).value
                self.expand_all(node, (*chain, source), f"{place}.")
        except (MissingResourceError, UsageError) as error:
            self.faults.append(RecipeFault(place, str(error), node.line))
        except RecipeError as error:
            self.faults += [RecipeFault(place, f"{node.value}: {found}", node.line) for found in error.faults]
