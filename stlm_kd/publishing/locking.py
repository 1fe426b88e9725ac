"""The lock of a recipe: what its names stand for, by one request for each name, without a download."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from stlm_kd.artifacts.atomic import write_text, writing
from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.artifacts.record import now, versions
from stlm_kd.data.sources.files import ROWS, TEXTS, text_files
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import MissingResourceError, RecipeError, RecipeFault
from stlm_kd.notes import note
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.recipe import Recipe, load, plain, recipe_hash
from stlm_kd.recipe.locate import find, lock_beside
from stlm_kd.recipe.lock import LOCK_FILE, Drift, Lock, LockedData, LockedModel, Made, drift, lock_yaml
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.yaml import Plain
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.sharing.names import expanded, hub_name, hub_name_or_path
from stlm_kd.sharing.pins import Pins, current

_MAX_FILES = 200
"""Files of a repository whose hashes are locked; of larger ones, the commit alone is."""


def lock_of(recipe: Recipe, pins: Pins) -> Lock:
    """What a recipe's names stand for; models and data of this machine by their hashes.

    Raises:
        MissingResourceError: A name or a path cannot be resolved.
    """
    models = {place: _model(place, name, pins) for place, name in _model_names(recipe)}
    data = {place: _data(source, pins, recipe) for place, source in _sources(recipe)}
    found = versions()
    return Lock(
        recipe=f"sha256:{recipe_hash(recipe)}",
        made=Made(f"stlm-kd {version('stlm-kd')}", on=now()[:10]),
        models=models,
        data=data,
        seeds=recipe.seeds,
        packages=found,
        environment={"python": platform.python_version(), "platform": platform.platform(terse=True)},
    )


def lock_recipe(recipe: str, destination: str | Path | None = None) -> tuple[Path, list[Drift]]:
    """Write the lock of a recipe; returns its file, and what moved since the lock that was there.

    Args:
        recipe: A file, folder, address or built-in name.
        destination: The file to write; None: ``recipe.lock`` beside the recipe.

    Raises:
        MissingResourceError: A name cannot be resolved, or the file not written.
        RecipeError: The recipe or the lock that was there is invalid.
    """
    source = find(recipe)
    target = source.path.with_name(LOCK_FILE) if destination is None else Path(destination)
    if destination is None and source.folder is not None:
        raise MissingResourceError(f"{recipe}: a fetched recipe is not changed; give a file: -o {LOCK_FILE}")
    lock, before = lock_of(load(recipe), current()), lock_beside(source)
    with writing(target, "-o"):
        write_text(target, lock_yaml(lock))
    return target, [] if before is None else drift(before, lock)


def require_lock(recipe: str, loaded: Recipe) -> None:
    """Refuse a recipe whose names stand for something else than its lock says; tell smaller differences.

    Args:
        recipe: The recipe's name; its lock lies beside it.
        loaded: The recipe.

    Raises:
        MissingResourceError: There is no lock, or a name cannot be resolved.
        RecipeError: The lock is invalid, or content differs from it; holds all differences.
    """
    source = find(recipe)
    lock = lock_beside(source)
    if lock is None:
        raise MissingResourceError(
            f"{recipe}: no {LOCK_FILE} beside it; make one: stlm-kd recipe lock {recipe}"
        )
    found = drift(lock, lock_of(loaded, current()))
    refused = [one for one in found if one.refuses]
    if refused:
        faults = [RecipeFault(one.place, str(one).partition(": ")[2]) for one in refused]
        raise RecipeError(f"{LOCK_FILE} of {source.origin}", faults)
    for one in found:
        if one.level == "code":
            note(f"{LOCK_FILE}: {one}")


def _model_names(recipe: Recipe, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Places and names of all models and tokenizers, also of recipes of teachers."""
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            yield from _model_names(teacher.recipe, f"{prefix}teachers.{teacher.name}.")
        elif teacher.model is not None:
            yield f"{prefix}teachers.{teacher.name}", teacher.model
    if recipe.student.model is not None:
        yield f"{prefix}student.model", recipe.student.model
    if isinstance(recipe.student.tokenizer, str):
        yield f"{prefix}student.tokenizer", recipe.student.tokenizer


def _sources(recipe: Recipe, prefix: str = "") -> Iterator[tuple[str, Source]]:
    for part in ("train", "validation"):
        for i, source in enumerate(getattr(recipe.data, part) or ()):
            yield f"{prefix}{part}.{i}", source
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            yield from _sources(teacher.recipe, f"{prefix}teachers.{teacher.name}.")


def _model(place: str, name: str, pins: Pins) -> LockedModel:
    hub = hub_name_or_path(name)
    if hub is None:
        is_tokenizer = place.endswith("student.tokenizer")
        return LockedModel(
            identity=tokenizer_identity(load_tokenizer(name)) if is_tokenizer else model_identity(name)
        )
    found = pins.resolve(hub)
    return LockedModel(hub.id, hub.revision, found.commit, license=found.licence, files=_files(found))


def _data(source: Source, pins: Pins, recipe: Recipe) -> LockedData:
    value, given = str(source.value), plain(source)
    name, split, revision = (_text(given.get(key)) for key in ("name", "split", "revision"))
    if source.kind == "hub":
        hub = hub_name(value, "dataset", revision=revision)
        found = pins.resolve(hub)
        return LockedData(
            hub.id,
            name=name,
            split=split,
            asked=hub.revision,
            commit=found.commit,
            files=_files(found),
            license=found.licence,
        )
    if source.kind != "path":
        size = given.get("size")
        return LockedData(
            name=f"{source.kind}:{value}", split=split, bytes=size if isinstance(size, int) else None
        )
    here = expanded(value)
    paths = text_files(here, kinds=TEXTS if recipe.language_task is not None else ROWS)
    locked = LockedData(path=_text(given["path"]))
    if here.is_file():
        return replace(locked, sha256=f"sha256:{known_sha256(here)}")
    hashes = {path.relative_to(here).as_posix(): f"sha256:{known_sha256(path)}" for path in paths}
    return replace(locked, files=hashes)


def _files(found: RepoInfo) -> dict[str, str]:
    """Hashes of a repository's files, as far as they are known and not too many."""
    files = {} if found.files is None or len(found.files) > _MAX_FILES else found.files
    return {
        path: f"{file.algorithm}:{file.hash}"
        for path, file in files.items()
        if file.hash and path.isprintable()
    }


def _text(value: Plain) -> str | None:
    return None if value is None else str(value)
