"""Locks: what the names in a recipe stand for, by one request for each name, without a download.

A finished run writes the lock of what it used and made.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.artifacts.hashing import known_sha256, sha256
from stlm_kd.artifacts.provenance import program
from stlm_kd.artifacts.record import now, versions
from stlm_kd.artifacts.run_dir import LOCK_FILE, open_run
from stlm_kd.artifacts.stage_store import WEIGHTS, StageRecord
from stlm_kd.data.sources import remote
from stlm_kd.data.sources.files import ROWS, TEXTS, text_files
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.errors import DataError, MissingResourceError, first_of
from stlm_kd.eval import SUITES
from stlm_kd.eval.pins import SuiteData
from stlm_kd.interventions.source import SourceData
from stlm_kd.pipeline.builders.models import open_precision
from stlm_kd.pipeline.builders.sources import sources
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.pipeline.stages.digests import stages_of
from stlm_kd.pipeline.stages.teacher import PreparedTeacher
from stlm_kd.recipe import Recipe, plain, recipe_hash
from stlm_kd.recipe.lock import (
    MAX_FILES,
    Lock,
    LockedData,
    LockedModel,
    LockedSuite,
    Made,
    drift,
    is_file_name,
    lock_yaml,
    readable,
)
from stlm_kd.recipe.schema.data import Source
from stlm_kd.recipe.schema.interchange import sources_with_data
from stlm_kd.recipe.yaml import Plain
from stlm_kd.sharing.data_sets.named import TRAIN, mirror
from stlm_kd.sharing.hub import RepoFile, RepoInfo
from stlm_kd.sharing.limits import shown
from stlm_kd.sharing.names import HubName, Kind, expanded, hub_name, hub_name_or_path
from stlm_kd.sharing.pins import Pins, current
from stlm_kd.teachers.cache.format import read_manifest

T = TypeVar("T")

_SUITES = "eval."
"""Start of the places of suites' data sets."""

_MAX_LOCAL_FILES = 100
"""Files of a local folder that are locked one by one; of a larger one, one hash of all is."""


def lock_of(recipe: Recipe) -> Lock:
    """What a recipe's names stand for in this command; models and data of this machine by their hashes.

    Raises:
        MissingResourceError: Names or paths cannot be resolved; holds all of them.
    """
    lost: list[str] = []
    models = _found(_models(recipe), lost)
    data = _found(_data(recipe), lost)
    suites: dict[str, LockedSuite] = {}
    for by_task in _found(_suites(recipe), lost).values():
        for place, read in by_task.items():
            commits = {name: repo.commit for name, repo in read.repos.items()}
            for name, repo in read.repos.items():
                data[f"{_SUITES}{name}"] = _data_set(hub_name(name, "dataset"), current().listed(repo))
            if place in suites:  # called twice, perhaps with other revisions
                commits = {**suites[place].data, **commits}
            local = None if read.local is None else f"sha256:{read.local}"
            suites[place] = LockedSuite(read.version, read.library, commits, local)
    if lost:
        first = [f"{len(lost)} names or paths cannot be resolved"] if len(lost) > 1 else []
        raise MissingResourceError("\n  ".join([*first, *first_of(lost)]))
    return readable(replace(bare_lock(recipe), models=models, data=data, eval=suites))


def bare_lock(recipe: Recipe) -> Lock:
    """The lock of a recipe with what is known without resolving a name."""
    own = program()
    return Lock(
        recipe=f"sha256:{recipe_hash(recipe)}",
        made=Made(f"stlm-kd {own.version}", own.code, now()[:10], own.wheel, own.source),
        seeds=recipe.seeds,
        teacher_precision=open_precision(recipe),
        packages=versions(),
        environment={"python": platform.python_version(), "platform": platform.platform(terse=True)},
    )


def _found(parts: Iterable[tuple[str, Callable[[], T]]], lost: list[str]) -> dict[str, T]:
    """What is found at each place; messages on what is not go to ``lost``."""
    found = {}
    for place, find in parts:
        try:
            found[place] = find()
        except MissingResourceError as error:
            lost.append(f"{place}: {error}")
    return found


def pins_of(lock: Lock, name: str, *, frozen: bool = False) -> Pins:
    """The pins of a lock.

    Args:
        lock: The lock.
        name: Its name in messages.
        frozen: Whether the Hub is not asked what the names mean by now.
    """
    used: list[RepoInfo] = []
    suites: list[RepoInfo] = []
    for place, source in lock.data.items():
        if source.hub is not None and source.commit is not None:
            of_suite = place.startswith(_SUITES) and source.asked is None
            (suites if of_suite else used).append(_repo("dataset", source.hub, source.commit, source))
    for model in lock.models.values():
        if model.id is not None and model.commit is not None:
            used.append(_repo("model", model.id, model.commit, model))
    return Pins(
        used,
        moved="frozen" if frozen else "keep",
        lock=name,
        benchmarks=suites,
        teacher_precision=lock.teacher_precision,
    )


def _repo(kind: Kind, id: str, commit: str, locked: LockedModel | LockedData) -> RepoInfo:
    files = {}
    for path, digest in locked.files.items():
        algorithm, _, found = digest.partition(":")
        files[path] = RepoFile(0, "git" if algorithm == "git" else "sha256", found)
    return RepoInfo(kind, id, locked.asked, commit, locked.license, files=files or None)


def write_lock(
    recipe: Recipe, run: Path, teachers: Sequence[PreparedTeacher], context: RunContext, *, begun: Lock
) -> None:
    """Write the lock of a run that is about to be done: what it used, by this command's pins, and made.

    Asks nobody and reads no large file: hashes of weights are those of their stages. It has no time of day,
    and the day is that of the run's first start, so a run that is repeated writes the same bytes.

    Args:
        recipe: The recipe.
        run: The run's folder.
        teachers: Its teachers.
        context: The run's context.
        begun: ``lock_of`` the recipe before anything was read.

    Raises:
        MissingResourceError: A file that was used is gone.
        DataError: A file that was used has changed meanwhile.
    """
    record = open_run(run).record
    lock = lock_of(recipe)
    if moved := [one for one in drift(begun, lock) if one.level == "content"]:
        listed = "; ".join(f"{one.place}: {one.locked} before, {one.found} now" for one in moved)
        raise DataError(
            f"{run}: changed while it was used ({listed}), so no lock can say what was read; repeat the "
            "command, which makes again what depends on it"
        )
    stages, outputs = {}, {}
    for place, folder, model in stages_of(recipe, run, teachers, context):
        made = StageRecord.of(folder)
        assert made is not None, f"{folder} is a stage or a copy of one"
        stages[place] = made.digest[:12]
        for name, digest in made.files.items():
            path = None if model is None else model / Path(name).name
            if name.endswith(WEIGHTS) and path is not None and path.is_file():
                outputs[path.relative_to(run).as_posix()] = f"sha256:{digest}"
    done = replace(
        lock,
        made=replace(lock.made, code=record.code, on=record.started[:10]),
        environment={**lock.environment, **({"hardware": record.hardware} if record.hardware else {})},
        stages=stages,
        outputs=outputs,
        results=f"sha256:{sha256(run / 'results.json')}",
    )
    write_text(run / LOCK_FILE, lock_yaml(readable(done)))


def _models(recipe: Recipe, prefix: str = "") -> Iterator[tuple[str, Callable[[], LockedModel]]]:
    """All models and tokenizers by place, also of recipes of teachers, and caches in place of teachers."""
    for teacher in recipe.teachers:
        place = f"{prefix}teachers.{teacher.name}"
        if teacher.cache is not None and teacher.cache.path is not None:
            yield f"{place}.cache", partial(_cache, teacher.cache.path)
        elif teacher.recipe is not None:
            yield from _models(teacher.recipe, f"{place}.")
        elif teacher.model is not None:
            yield place, partial(_model, teacher.model, model_identity)
    if recipe.student.model is not None:
        yield f"{prefix}student.model", partial(_model, recipe.student.model, model_identity)
    if isinstance(recipe.student.tokenizer, str):
        find = partial(_model, recipe.student.tokenizer, _tokenizer)
        yield f"{prefix}student.tokenizer", find


def _model(name: str, identify: Callable[[str], str]) -> LockedModel:
    hub = hub_name_or_path(name)
    if hub is None:
        return LockedModel(identity=identify(name))
    found = _resolved(hub)
    return LockedModel(hub.id, hub.revision, found.commit, license=_licence(found), files=_files(found))


def _tokenizer(folder: str) -> str:
    return tokenizer_identity(load_tokenizer(folder))


def _cache(folder: str) -> LockedModel:
    return LockedModel(identity=read_manifest(expanded(folder)).fingerprint)


def _data(recipe: Recipe, prefix: str = "") -> Iterator[tuple[str, Callable[[], LockedData]]]:
    """All sources by place, also what counterfactual sources read, and those of recipes of teachers."""
    labelled = recipe.language_task is None
    for part in ("train", "validation"):
        for i, source in enumerate(getattr(recipe.data, part) or ()):
            of_rows = labelled or source.chat is not None
            yield f"{prefix}{part}.{i}", partial(_source, source, labelled=of_rows)
            if source.chat is not None:
                yield f"{prefix}{part}.{i}.chat", partial(_template, source, recipe)
    for name, source_data in sources_with_data(recipe.objectives):
        yield f"{prefix}sources.{name}", partial(_beside_text, source_data)
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            yield from _data(teacher.recipe, f"{prefix}teachers.{teacher.name}.")


def _template(source: Source, recipe: Recipe) -> LockedData:
    """The template that renders the chats of a source."""
    (found,) = sources([source], recipe)
    assert found.chat is not None and source.chat is not None
    name, (_, digest) = f"chat:{shown(source.chat.template)}", found.chat.identity()
    return LockedData(name=name, sha256=f"sha256:{digest}")


def _beside_text(data: SourceData) -> LockedData:
    """What a counterfactual source reads beside the text, such as WordNet."""
    return LockedData(name=", ".join(f"{name} {version}" for name, version in data.identity().items()))


def _source(source: Source, *, labelled: bool) -> LockedData:
    value, given = str(source.value), plain(source)
    name, split, revision = (_text(given.get(key)) for key in ("name", "split", "revision"))
    if source.kind == "hub":
        hub = hub_name(value, "dataset", revision=revision)
        held = mirror(hub, name, (split or TRAIN,))
        commit = None if held is None else held.commit
        if held is None or commit is not None:
            found = RepoInfo("dataset", hub.id, hub.revision, commit) if commit else _resolved(hub)
            content = None if held is None else f"sha256:{known_sha256(held.files[split or TRAIN])}"
            return replace(_data_set(hub, found), name=name, split=split, sha256=content)
    if source.kind != "path":
        size = given.get("size")
        identity = hash_of(source.entry.identity(source.value, **source.options(labelled=labelled)))
        return LockedData(
            name=f"{source.kind}:{shown(value)}{f' {name}' if name else ''}",
            split=split,
            bytes=size if isinstance(size, int) else None,
            sha256=f"sha256:{identity}",
        )
    if stated := remote.stated_hash(value):
        return LockedData(path=_text(given["path"]), sha256=f"sha256:{stated}")
    here = remote.located(value)
    paths = text_files(here, kinds=ROWS if labelled else TEXTS)
    locked = LockedData(path=_text(given["path"]))
    if here.is_file():
        return replace(locked, sha256=f"sha256:{known_sha256(here)}")
    hashes = {path.relative_to(here).as_posix(): f"sha256:{known_sha256(path)}" for path in paths}
    if len(hashes) > _MAX_LOCAL_FILES or not all(map(is_file_name, hashes)):
        return replace(locked, sha256=f"sha256:{hash_of(sorted(hashes.items()))}")
    return replace(locked, files=hashes)


def _suites(recipe: Recipe) -> Iterator[tuple[str, Callable[[], dict[str, SuiteData]]]]:
    """What each suite reads beside the held-out data, by task."""

    def find(suite: str, options: Mapping[str, Any]) -> dict[str, SuiteData]:
        by_task = SUITES[suite].data_by_task(options)
        return {f"{suite}:{task}": one for task, one in by_task.items()}

    for number, entry in enumerate(recipe.eval):
        yield f"eval[{number}] ({entry.suite})", partial(find, entry.suite, entry.options)


def _resolved(name: HubName) -> RepoInfo:
    """A repository at this command's commit, with the files that the Hub lists."""
    return current().listed(current().resolve(name))


def _data_set(name: HubName, found: RepoInfo) -> LockedData:
    return LockedData(
        name.id,
        asked=name.revision,
        commit=found.commit,
        files=_files(found),
        license=_licence(found),
    )


def _licence(found: RepoInfo) -> str | None:
    return shown(found.licence) if found.licence else None


def _files(found: RepoInfo) -> dict[str, str]:
    """Hashes of a repository's files, as far as they are known and not too many."""
    files = {} if found.files is None or len(found.files) > MAX_FILES else found.files
    return {
        path: f"{file.algorithm}:{file.hash}"
        for path, file in files.items()
        if file.hash and is_file_name(path)
    }


def _text(value: Plain) -> str | None:
    return None if value is None else str(value)
