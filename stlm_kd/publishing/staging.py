"""The folder of a recipe that is pushed: the recipe as written, and what it names inside its folder.

The folder is read back as a stranger would read it, so what is pushed loads elsewhere with the same hash.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePath
from posixpath import normpath

from stlm_kd.artifacts.hashing import sha256
from stlm_kd.artifacts.record import Record
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault, StlmKdError
from stlm_kd.notes import note
from stlm_kd.recipe import Recipe, load, recipe_hash, resolved_yaml
from stlm_kd.recipe.foreign import check_fetched
from stlm_kd.recipe.load import checked, names_in
from stlm_kd.recipe.locate import Document, Source, find, folder, read_source
from stlm_kd.recipe.paths import DEEPSPEED, Named
from stlm_kd.recipe.yaml import Node, parse
from stlm_kd.recipes import purpose
from stlm_kd.sharing.address import RECIPE, WebAddress, parse_address
from stlm_kd.sharing.limits import MAX_DATA, Entry, check_contents, checked_listing, size_limit
from stlm_kd.sharing.names import expanded, hub_name_or_path, is_commit

_OPTIONS = {"-r", "--recipe", "-c", "--config"}


@dataclass(frozen=True, slots=True)
class Staged:
    """A recipe as it is pushed.

    Attributes:
        recipe: The recipe.
        stranger: The same, as it is read from the folder; None if it cannot be.
        purpose: The first line of its header comment.
        faults: What may not be pushed, each with what to do.
    """

    recipe: Recipe
    stranger: Recipe | None
    purpose: str
    faults: tuple[RecipeFault, ...]


def stage(name: str, record: Record | None, target: Path, address: str, *, with_data: bool) -> Staged:
    """Write a recipe and its data into an empty folder, and read it back.

    Args:
        name: The recipe, or the folder of a run.
        record: That of the run.
        target: The folder.
        address: Where it will be, which faults name.
        with_data: Whether files of data go along.

    Raises:
        RecipeError: The recipe is invalid.
        MissingResourceError: There is no such recipe.
    """
    recipe = load(name, is_stored=record is not None)
    written = (record and _original(record, recipe)) or read_source(find(name))
    names = names_in(recipe)
    files = _files_of(written, has_data=not all(named.is_model for named in names))
    if files is None:
        note(f"{name}: is pushed with all that it names written into it, which loses comments")
    faults = []
    for path, text in (files or {RECIPE: resolved_yaml(recipe)}).items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
        faults += [*_moving(parse(text), path)]
    taken: dict[str, Path] = {}
    for named in names:
        faults += _models(named) if named.is_model else _data(named, taken, with_data=with_data)
    own = [fault.place for fault in faults]
    once: dict[str, RecipeFault] = {}
    for fault in faults:  # recipes of teachers name the same files
        once.setdefault(fault.message, fault)
    for path, source in taken.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / path)
    stranger, more = _read_back(recipe, target, address, is_stored=record is not None)
    new = [one for one in more if not any(_is_same(one.place.partition(" ")[0], place) for place in own)]
    return Staged(recipe, stranger, purpose(written.sources[0].path), (*once.values(), *new))


def _original(record: Record, recipe: Recipe) -> Document | None:
    """The recipe that a run's command named, if it is here and is still that of the run."""
    with suppress(StlmKdError, ValueError):
        words = shlex.split(record.command)
        named = next((word for option, word in pairwise(words) if option in _OPTIONS), "")
        if named and recipe_hash(load(named, is_stored=True)) == recipe_hash(recipe):
            return read_source(find(named))
    return None


def _files_of(written: Document, *, has_data: bool) -> dict[str, str] | None:
    """The text of each file of a recipe by its path in the recipe's folder.

    None if one lies elsewhere; or in a folder of its own, where its data would be looked for.
    """
    main, *others = written.sources
    found = {RECIPE: main.path.read_text(encoding="utf-8")}
    for source in others:
        path = source.path.resolve()
        is_fetched = source.folder is not None and source.folder != main.folder
        if is_fetched or path.is_relative_to(folder().resolve()):
            continue
        root = main.path.parent.resolve()
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        if size_limit(name) is None or name == RECIPE or (has_data and "/" in name):
            return None
        found[name] = path.read_text(encoding="utf-8")
    return found


def _moving(root: Node, file: str) -> Iterator[RecipeFault]:
    """A fault for each address in a file that may mean another recipe one day."""
    for key, node in root.value.items() if isinstance(root.value, dict) else ():
        if key in ("recipe", "extends") and isinstance(node.value, str) and "://" in node.value:
            address = parse_address(node.value)
            if not isinstance(address, WebAddress | None) and not is_commit(address.revision or ""):
                message = f"{node.value} may change; name its commit (40 digits after @)"
                yield RecipeFault(f"{file} {key}", message, node.line)
        for inner in node.value if isinstance(node.value, list) else [node]:
            yield from _moving(inner, file)


def _models(named: Named) -> Iterator[RecipeFault]:
    if named.place.endswith("cache.path"):
        return
    with suppress(MissingResourceError):
        if hub_name_or_path(named.text) is not None:
            return
    yield RecipeFault(
        named.place,
        f"{named.written} is a folder of this machine; give the recipe that trains it (recipe: FILE), or "
        "push it (stlm-kd push FOLDER hf://USER/NAME), name that, and run the recipe again",
    )


def _data(named: Named, taken: dict[str, Path], *, with_data: bool) -> Iterator[RecipeFault]:
    """Collect the files of a source by their path in the folder, or give the reasons why they stay."""
    if named.place.endswith(("cache.path", DEEPSPEED)):  # which a recipe from elsewhere may not name
        return
    inside, here = normpath(named.written), expanded(named.text)
    inner = [] if here.is_file() else sorted(path for path in here.rglob("*") if path.is_file())
    shown = [path for path in inner if not any(part[0] == "." for part in path.relative_to(here).parts)]
    files = [here] if here.is_file() else shown
    if not files:
        yield RecipeFault(named.place, f"{here}: nothing is there; put the data back, or name what is there")
    for file in files:
        path = inside if file == here else f"{inside}/{file.relative_to(here).as_posix()}"
        size = file.stat().st_size
        if not path.startswith("data/") or size_limit(path) is None:
            message = (
                f"{path}: only text and tables in the folder data beside the recipe are pushed; put it there "
                f"and name it data/{file.name}, or a data set of the Hub"
            )
        elif _is_linked(file, path):
            message = f"{path}: a link to somewhere else; put a copy there"
        elif size > MAX_DATA:
            message = f"{path}: {size:,} bytes; expected at most {MAX_DATA:,}; make it a data set of the Hub"
        elif not with_data:
            message = f"{path}: {size:,} bytes that stay here; if their licence allows it, give --with-data"
        elif (other := taken.setdefault(path, file)) != file and sha256(other) != sha256(file):
            message = f"{path}: two files would have this name; rename one"
        else:
            continue
        yield RecipeFault(named.place, message)


def _is_linked(file: Path, path: str) -> bool:
    """Whether a file, which has this path in the recipe's folder, really lies elsewhere."""
    root = file.absolute().parents[len(PurePath(path).parts) - 1]
    return file.resolve() != root.resolve() / path


def _read_back(
    recipe: Recipe, target: Path, address: str, *, is_stored: bool
) -> tuple[Recipe | None, list[RecipeFault]]:
    """The recipe as a stranger reads it, or the faults for which it would be refused."""
    try:
        found = checked(read_source(Source(target / RECIPE, address, target)), is_stored=is_stored)
    except RecipeError as error:
        return None, [RecipeFault(one.place, _cured(one.message), one.line) for one in error.faults]
    if recipe_hash(found) == recipe_hash(recipe):
        return found, []
    return None, [RecipeFault("", "loads as another recipe elsewhere; make it independent of this machine")]


def as_fetched(folder: Path, address: str) -> list[RecipeFault]:
    """Why a folder would be refused when it is fetched."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    try:
        checked_listing((Entry(name, path.stat().st_size, "") for name, path in paths.items()), address)
        check_contents(folder, address)
        check_fetched(folder, folder / RECIPE)
    except RecipeError as error:
        return list(error.faults)
    return []


def _cured(message: str) -> str:
    """A refusal of a recipe from elsewhere, for its author."""
    cause, _, cure = message.rpartition("; ")
    return f"{cause}; remove it, and run the recipe again" if "command line" in cure else message


def _is_same(place: str, other: str) -> bool:
    return bool(place and other) and (place.startswith(other) or other.startswith(place))
