"""Find missing requirements of a recipe, without reading data or loading models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

from stlm_kd.data.sources.files import not_set, require_path
from stlm_kd.errors import MissingResourceError, ModelError, RecipeFault, UsageError
from stlm_kd.eval import SUITES, Suite
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.interchange import sources_with_data
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.recipe.validation.deepspeed import read_settings
from stlm_kd.sharing.gguf import gguf_file
from stlm_kd.sharing.gguf_header import read_header
from stlm_kd.sharing.names import unset_variables
from stlm_kd.sharing.pins import local_folder

NO_DEEPSPEED = "the package deepspeed is not installed; pip install deepspeed, or leave engine.deepspeed out"


def require_deepspeed(place: str) -> None:
    """MissingResourceError, which names the place, if the package is not installed."""
    if find_spec("deepspeed") is None:
        raise MissingResourceError(f"{place}: {NO_DEEPSPEED}")


def missing_here(recipe: Recipe, *, prefix: str = "") -> list[RecipeFault]:
    """All missing requirements of the recipe and of its teachers' recipes.

    Checks files and folders, environment variables, models and data sets of the Hub (in the cache, or the Hub
    is reachable), optional packages, and the data of suites. One fault per requirement, with all its places.
    """
    found: dict[str, list[str]] = {}
    for place, message in _missing(recipe, prefix):
        places = found.setdefault(message, [])
        if place not in places:
            places.append(place)
    return [RecipeFault(", ".join(places), message) for message, places in found.items()]


def _missing(recipe: Recipe, prefix: str) -> Iterator[tuple[str, str]]:
    student, data = recipe.student, recipe.data
    if isinstance(student.tokenizer, str):
        yield from _of_model(f"{prefix}student.tokenizer", student.tokenizer)
    if student.model is not None:
        yield from _of_model(f"{prefix}student.model", student.model)
    for number, teacher in enumerate(recipe.teachers):
        yield from _of_teacher(f"{prefix}teachers[{number}]", teacher)
    for part, sources in (("train", data.train), ("validation", data.validation or ())):
        for number, source in enumerate(sources):
            several = f"[{number}]" if len(sources) > 1 else ""
            labelled = recipe.language_task is None
            yield from _of_source(f"{prefix}data.{part}{several}", source, labelled=labelled)
    yield from _of_packages(recipe, prefix)
    for number, entry in enumerate(recipe.eval):
        yield from _of_suite(f"{prefix}eval[{number}] ({entry.suite})", SUITES[entry.suite], entry.options)


def _of_teacher(place: str, teacher: Teacher) -> Iterator[tuple[str, str]]:
    if teacher.cache is not None and teacher.cache.path is not None:
        yield from _faults_of(f"{place}.cache", partial(require_path, teacher.cache.path))
    elif teacher.recipe is not None:
        yield from _missing(teacher.recipe, f"{place}.recipe.")
    elif teacher.model is not None:
        yield from _of_model(f"{place}.model", teacher.model)


def _of_source(place: str, source: Source, *, labelled: bool) -> Iterator[tuple[str, str]]:
    yield from _faults_of(f"{place}.{source.kind}", partial(source.require, labelled=labelled))


def _of_model(place: str, name: str) -> Iterator[tuple[str, str]]:
    """A fault unless the folder exists, or the Hub or its cache has the configuration or tokenizer."""
    if unset := unset_variables(name):
        yield place, not_set(unset)
        return
    try:
        if (file := gguf_file(name)) is not None:
            read_header(file)
        elif not local_folder(name, weights=False).is_dir():
            seen = f"(seen from {Path.cwd()})"
            yield place, f"{name}: no such folder {seen}, and no Hub id; give one that exists"
    except OSError as error:
        yield place, f"{name}: cannot be read ({error.strerror}); give a folder that exists"
    except (MissingResourceError, ModelError) as error:
        yield place, str(error)


def gguf_models(recipe: Recipe) -> list[str]:
    """A line for each of a recipe's models that is a readable GGUF file, with its quantisation."""
    lines = []
    named = [(f"teacher {one.name}", one.model) for one in recipe.teachers]
    for place, name in [*named, ("student", recipe.student.model)]:
        with suppress(MissingResourceError, ModelError, OSError):
            if name is not None and (file := gguf_file(name)) is not None:
                kinds = read_header(file).quantisation
                lines.append(f"{place}: the weights of {file.name} are {kinds}, dequantised to float32")
    inner = (teacher.recipe for teacher in recipe.teachers if teacher.recipe is not None)
    return list(dict.fromkeys([*lines, *chain.from_iterable(map(gguf_models, inner))]))


def _of_packages(recipe: Recipe, prefix: str) -> Iterator[tuple[str, str]]:
    if "wandb" in recipe.tracking and find_spec("wandb") is None:
        yield f"{prefix}tracking", "the package wandb is not installed; pip install 'stlm-kd[wandb]'"
    if recipe.engine.deepspeed is not None and find_spec("deepspeed") is None:
        yield f"{prefix}engine.deepspeed", NO_DEEPSPEED
    if recipe.engine.deepspeed is not None and recipe.engine.deepspeed.config is not None:
        look = partial(read_settings, recipe.engine.deepspeed.config)
        yield from _faults_of(f"{prefix}engine.deepspeed.config", look)
    found = sources_with_data(recipe.objectives)
    for _, data in found:
        place = f"{prefix}objectives: source {', '.join(name for name, _ in found)}"
        yield from _faults_of(place, data.require)


def _of_suite(place: str, suite: Suite, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for require in suite.requirements(options):
        yield from _faults_of(place, require)
    if suite.fine_tunes:
        yield from _faults_of(place, partial(suite.fine_tune_tasks, options))


def _faults_of(place: str, look: Callable[[], object]) -> Iterator[tuple[str, str]]:
    """A fault with the error message, if the check raises an error."""
    try:
        look()
    except (MissingResourceError, UsageError) as error:
        yield place, str(error)
