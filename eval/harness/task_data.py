"""Sources of the rows of lm-eval's tasks: the Hub or its cache, local files, or the sample generator.

A local task includes the built-in one and replaces only its rows; prompts and metrics are lm-eval's.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Literal, TypeAlias
from unittest import mock

import datasets
import yaml
from datasets.exceptions import DatasetNotFoundError
from lm_eval import tasks as lm_eval_tasks
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager

from stlm_kd.data.sources.files import text_files
from stlm_kd.data.sources.sources import Source, fingerprint
from stlm_kd.data.synthetic import BENCHMARK, PHENOMENA
from stlm_kd.errors import MissingResourceError, UsageError, did_you_mean, first_line
from stlm_kd.eval.pins import Named, at_revision, benchmark, benchmark_name, names_in
from stlm_kd.sharing.data_sets import tables as hub_data
from stlm_kd.sharing.data_sets.named import DATA, layout_of, mirror_folder
from stlm_kd.sharing.names import hub_name_or_path

Origin: TypeAlias = Literal["builtin", "local", "generated"]

GROUPS = {"stlm": ("blimp", "hellaswag", "arc_easy", "winogrande", "mmlu")}
"""Our own names for groups of tasks."""

_LM_EVAL_TASKS = Path(str(lm_eval_tasks.__file__)).parent


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A task or group that can be read from local files.

    Attributes:
        folder: Its folder within lm-eval's tasks.
        hub: Its data set on the Hub and a configuration of it.
        has_parts: Whether it is a group, with one local file for all its tasks.
        shots: Whether the local files contain the rows for few-shot examples.
    """

    folder: str
    hub: tuple[str, str]
    has_parts: bool
    shots: bool


LOCAL = {
    "blimp": Benchmark("blimp", ("nyu-mll/blimp", "adjunct_island"), has_parts=True, shots=True),
    "hellaswag": Benchmark("hellaswag", ("Rowan/hellaswag", "default"), has_parts=False, shots=False),
    "arc_easy": Benchmark("arc", ("allenai/ai2_arc", "ARC-Easy"), has_parts=False, shots=True),
    "winogrande": Benchmark(
        "winogrande", ("allenai/winogrande", "winogrande_xl"), has_parts=False, shots=False
    ),
    "mmlu": Benchmark("mmlu/default", ("cais/mmlu", "abstract_algebra"), has_parts=True, shots=True),
}


@dataclass(frozen=True, slots=True)
class Built:
    """A task or group that is ready to run, by its requested name, and the source of its rows."""

    name: str
    item: Task | Group
    origin: Origin


def expand(names: Sequence[str]) -> list[str]:
    """The names of tasks, with our own groups expanded and duplicates removed.

    >>> expand(["arc_easy", "stlm"])
    ['arc_easy', 'blimp', 'hellaswag', 'winogrande', 'mmlu']
    """
    spelled = (part for name in names for part in GROUPS.get(name, (name,)))
    return list(dict.fromkeys(spelled))


def whole_of(name: str) -> str | None:
    """The benchmark of ``LOCAL`` that a name is or is a part of; None if there is none.

    >>> whole_of("blimp"), whole_of("blimp_wh_island"), whole_of("mmlu_stem"), whole_of("mmlu_stme")
    ('blimp', 'blimp', 'mmlu', None)
    """
    if name in LOCAL:
        return name
    wholes = (whole for whole in LOCAL if LOCAL[whole].has_parts and name.startswith(f"{whole}_"))
    managers = ((whole, _builtin_tasks(whole)) for whole in wholes)
    return next((whole for whole, own in managers if name in {*own.all_subtasks, *own.all_groups}), None)


@cache
def _builtin_tasks(whole: str | None) -> TaskManager:
    """lm-eval's own tasks and groups, of a benchmark or (None) all."""
    if whole is None:
        return TaskManager()
    return TaskManager(include_defaults=False, include_path=_LM_EVAL_TASKS / LOCAL[whole].folder)


def build(names: Sequence[str], *, source: str, num_fewshot: int | None, hub: Named = None) -> list[Built]:
    """The tasks, ready to run; cached within the process. ``hub``: data sets at other revisions.

    Raises:
        UsageError: A task that lm-eval does not know.
        MissingResourceError: Rows are missing.
    """
    data = os.environ.get(DATA, "")
    return [
        _build(name, origin, num_fewshot, data, _version(name, origin, hub), names_in(hub))
        for name in expand(names)
        for origin in [find_origin(name, source, num_fewshot, hub)]
    ]


def _version(name: str, origin: Origin, hub: Named) -> str:
    if origin == "local":
        return local_version(name)
    whole = whole_of(name) if origin == "builtin" else None
    return "" if whole is None else benchmark(at_revision(LOCAL[whole].hub[0], hub)).commit


def local_version(name: str) -> str:
    """A hash of the local files with a task's rows."""
    return fingerprint(Source(path=str(_local_folder(whole_of(name) or name))))


def local_files(name: str) -> list[Path]:
    """The local files with a task's rows; MissingResourceError or DataError if there are none."""
    return text_files(_local_folder(whole_of(name) or name))


def _local_folder(whole: str) -> Path:
    folder = mirror_folder(*LOCAL[whole].hub)
    assert folder is not None, f"{DATA} is not set"
    return folder.absolute()


def stated(name: str) -> tuple[str | None, set[str]]:
    """The version of one of lm-eval's tasks or groups, and its data sets (``id[@revision]``).

    Raises:
        UsageError: lm-eval does not know it.
    """
    index = _index_of(name)
    version = ((index[name].cfg or {}).get("metadata") or {}).get("version")
    return None if version is None else str(version), set(_stated_paths(name, index))


def _stated_paths(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """The data sets of a task, or of the members of a group or tag."""
    entry = index.get(name)
    if entry is None:
        return
    config = entry.cfg or {}
    yield from _stated_path(config)
    members = config.get("task", ()) if config else entry.tags
    for member in members if not isinstance(members, str) else ():
        inner: Mapping[str, Any] = {"task": member} if isinstance(member, str) else member
        yield from _stated_path(inner)
        yield from _stated_paths(str(inner.get("task") or inner.get("group")), index)


def _stated_path(config: Mapping[str, Any]) -> Iterator[str]:
    if path := config.get("dataset_path"):
        revision = (config.get("dataset_kwargs") or {}).get("revision")
        yield f"{path}@{revision}" if revision else path


def _index_of(name: str) -> Mapping[str, Any]:
    """lm-eval's tasks and groups by name, with their configurations; UsageError if it lacks the name."""
    manager = _builtin_tasks(whole_of(name))
    if name not in manager.all_tasks:
        known = (*manager.all_tasks, *LOCAL, *GROUPS, BENCHMARK)
        raise UsageError(f"lm-eval: {name} is not a known task{_near(name, known)}")
    found: Mapping[str, Any] = manager.task_index
    return found


def leaves(item: Task | Group) -> list[Task]:
    """The tasks of a group, or the task itself."""
    return list(item.get_all_tasks()) if isinstance(item, Group) else [item]


def data_sets(built: Built) -> set[str]:
    """The data sets of a task's rows."""
    configs = [task.config for task in leaves(built.item)]
    return {config.dataset_path for config in configs if config.dataset_path}


def is_on_hub(path: str) -> bool:
    """Whether a task's data set is one of the Hub, rather than a folder or a reader of files."""
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    return path not in _PACKAGED_DATASETS_MODULES and hub_name_or_path(path, "dataset") is not None


def find_origin(name: str, source: str, num_fewshot: int | None = None, hub: Named = None) -> Origin:
    """The source of a task's rows; the Hub for data sets that ``hub`` names at a revision.

    Raises:
        MissingResourceError: ``source`` (or, for ``auto``, any source) does not have them.
    """
    if name == BENCHMARK:
        return "generated"
    whole = whole_of(name)
    if source == "builtin":
        return "builtin"
    dataset, configuration = LOCAL[whole].hub if whole is not None else ("", "")
    if source == "auto" and (
        whole is None or at_revision(dataset, hub) != dataset or _is_available(dataset, configuration)
    ):
        return "builtin"
    if whole is None:
        raise MissingResourceError(f"{name}: no local files are known for it; use source: builtin")
    _check_local(name, whole, num_fewshot)
    return "local"


def _is_available(dataset: str, configuration: str) -> bool:
    return hub_data.is_available(benchmark_name(dataset), configuration)


def _check_local(name: str, whole: str, num_fewshot: int | None) -> None:
    benchmark, data = LOCAL[whole], os.environ.get(DATA)
    if not data or not _local_folder(whole).is_dir():
        held = layout_of(*benchmark.hub).folder
        found = f"{data} has no {held}" if data else f"{DATA} is not set"
        raise MissingResourceError(
            f"{name}: {benchmark.hub[0]} is neither reachable on the Hub nor in its cache, and {found}; "
            f"go online once, or set {DATA} to a folder that holds {held}"
        )
    if num_fewshot and not benchmark.shots:
        raise MissingResourceError(
            f"{name}: its few-shot examples come from the training split, which the local files lack; "
            "use num_fewshot: 0, or go online"
        )


@lru_cache(maxsize=32)
def _build(
    name: str, origin: Origin, num_fewshot: int | None, data: str, version: str, hub: tuple[str, ...]
) -> Built:
    """All arguments are part of the cache key, since a task object keeps its shots, location and rows."""
    del num_fewshot, version
    if origin == "builtin":
        return Built(name, _load_builtin(name, hub), origin)
    with tempfile.TemporaryDirectory(prefix="stlm-kd-tasks-") as folder:
        _write_task_files(name, data, Path(folder))
        manager = TaskManager(include_defaults=False, include_path=Path(folder))
        return Built(name, _load(manager, name), origin)


def _load_builtin(name: str, hub: tuple[str, ...] = ()) -> Task | Group:
    _index_of(name)
    with mock.patch.object(datasets, "load_dataset", partial(_at_commit, datasets.load_dataset, hub)):
        return _load(_builtin_tasks(whole_of(name)), name)


def _at_commit(
    load: Callable[..., Any], hub: Named, path: str, name: str | None = None, **options: Any
) -> Any:
    """``datasets.load_dataset`` for lm-eval's tasks: data sets of the Hub at their commit."""
    if not is_on_hub(path):
        return load(path, name, **options)
    revision = options.pop("revision", None)
    given = at_revision(path, hub)
    found = benchmark(f"{path}@{revision}" if revision and given == path else given)
    if not options:
        return hub_data.read_splits(found, name)
    return load(path, name, **options, revision=found.commit)


def _near(name: str, known: Sequence[str]) -> str:
    """A suggestion, without the list of lm-eval's thousands of tasks."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith(" (") else "; `lm-eval ls tasks` lists them"


def _load(manager: TaskManager, name: str) -> Task | Group:
    try:
        loaded = manager.load([name])
    except (ConnectionError, DatasetNotFoundError, FileNotFoundError, MissingResourceError) as error:
        raise MissingResourceError(
            f"{name}: its rows could not be read ({first_line(error)}); go online, or set {DATA} to a "
            f"folder that holds lm_eval/{whole_of(name) or name} and use source: local"
        ) from error
    groups, tasks = loaded.get("groups", {}), loaded["tasks"]
    if name not in groups and name not in tasks:
        raise UsageError(
            f"lm-eval: {name} names several tasks ({', '.join(sorted(tasks))}); list those you want"
        )
    item: Task | Group = groups[name] if name in groups else tasks[name]
    return item


def _write_task_files(name: str, data: str, folder: Path) -> None:
    """Write a task file for each part of the benchmark, from our template."""
    if name == BENCHMARK:
        for phenomenon in PHENOMENA:
            _fill_in(name, folder / f"{phenomenon}.yaml", {"PART": phenomenon})
        _fill_in(f"{name}_group", folder / "group.yaml", {})
        return
    whole = whole_of(name)
    assert whole is not None, name
    places = {"LM_EVAL_TASKS": str(_LM_EVAL_TASKS), DATA: str(Path(data).absolute())}
    if not LOCAL[whole].has_parts:
        _fill_in(whole, folder / f"{whole}.yaml", places)
        return
    for builtin in sorted((_LM_EVAL_TASKS / LOCAL[whole].folder).glob("*.yaml")):
        content = yaml.safe_load(builtin.read_text())
        if "group" in content:
            (folder / builtin.name).write_text(f"include: {json.dumps(str(builtin))}\n")
        else:
            part = {"FILE": builtin.name, "PART": content["dataset_name"]}
            _fill_in(whole, folder / builtin.name, places | part)


def _fill_in(template: str, file: Path, values: dict[str, str]) -> None:
    """Write a template of ``eval/tasks`` with its ``$NAMES`` (all within double quotes) substituted."""
    text = files("stlm_kd.eval.tasks").joinpath(f"{template}.yaml").read_text()
    escaped = {key: json.dumps(value)[1:-1] for key, value in values.items()}
    file.write_text(Template(text).substitute(escaped))
