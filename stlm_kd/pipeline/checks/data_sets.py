"""The data that a recipe and its suites read: where they are, how large, and fetching them ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from stlm_kd.data.sources import remote
from stlm_kd.data.sources.files import ROWS, TEXTS, text_files
from stlm_kd.data.sources.hub import has_table, mirrored
from stlm_kd.errors import DataError, MissingResourceError, UsageError
from stlm_kd.eval import SUITES, Suite
from stlm_kd.eval.pins import SuiteData, benchmark_name
from stlm_kd.notes import note
from stlm_kd.recipe import Recipe, named_recipe
from stlm_kd.recipe.schema.data import Source
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets import split_files, tables
from stlm_kd.sharing.data_sets.named import found_files, mirror
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.sharing.names import HubName, hub_name
from stlm_kd.sharing.snapshot import size_of

State = Literal["here", "mirror", "cached", "in part", "on the Hub", "not fetched", "generated", "missing"]


@dataclass(frozen=True, slots=True)
class DataSet:
    """Data that a recipe reads.

    >>> [(one.name, one.state) for one in list_data("sample-two-teachers", ["eval=[]"])]
    [('sample train', 'generated'), ('sample validation', 'generated')]

    Attributes:
        name: The data set (id and configuration), or the path.
        places: Where the recipe names it.
        state: ``here``: a local file or folder; ``mirror``: in place of the Hub; ``in part``: some files are
            in the cache; ``not fetched``: nothing of an address is.
        splits: The splits that are read, if they are known.
        where: The files, or the commit.
        files: Number of files.
        num_bytes: Their size, compressed as they are.
        licence: As the card states.
        fault: Why it is missing.
    """

    name: str
    places: tuple[str, ...]
    state: State
    splits: tuple[str, ...] = ()
    where: str = ""
    files: int | None = None
    num_bytes: int | None = None
    licence: str | None = None
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A data set with the functions that look for it, and that fetch it; ``as_table`` as in ``of_hub``."""

    name: str
    place: str
    splits: tuple[str, ...]
    look: Callable[[], DataSet]
    fetch: Callable[[], object] = lambda: None
    as_table: bool = False


def list_data(recipe: Recipe | str, overrides: Sequence[str] = ()) -> list[DataSet]:
    """What a recipe, its teachers' recipes and its suites read; one entry for each data set.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.

    Raises:
        RecipeError: The recipe is invalid.
    """
    return [_looked(wanted) for wanted in _merged(_of_recipe(named_recipe(recipe, overrides, None)[0]))]


def get_data(recipe: Recipe | str, overrides: Sequence[str] = ()) -> list[DataSet]:
    """Fetch what a recipe reads into the cache, file by file, and return what it is then, as ``list_data``.

    What is in the cache is checked, not fetched again, so a broken fetch goes on where it broke. Notes what
    was fetched.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.

    Raises:
        RecipeError: The recipe is invalid.
        MissingResourceError: Some cannot be fetched; holds all of them. The others are there then.
        DataError, UsageError: Likewise, if this is the error of the first of them.
    """
    found: list[DataSet] = []
    faults: dict[str, MissingResourceError | DataError | UsageError] = {}
    for group in _merged(_of_recipe(named_recipe(recipe, overrides, None)[0])):
        before = _looked(group)
        for wanted in group:
            if _looked([wanted]).state not in ("here", "mirror", "generated"):
                try:
                    wanted.fetch()
                except (MissingResourceError, DataError, UsageError) as error:
                    faults[f"{wanted.place}: {error}"] = error
        found.append(_looked(group))
        if found[-1].state == "cached" != before.state:
            note(f"{found[-1].name}: fetched")
    if faults:
        kind = type(next(iter(faults.values())))
        raise kind("\n  ".join([f"{len(faults)} data sets cannot be fetched", *faults]))
    return found


def mirrors_read(recipe: Recipe) -> list[str]:
    """A line for each data set that a recipe's sources name and that a mirror gives; the Hub is not asked."""
    lines = []
    for part in ("train", "validation"):
        for source in getattr(recipe.data, part) or ():
            if source.kind == "hub":
                options = source.options(labelled=recipe.language_task is None)
                held = mirrored(source.value, **options)
                if held is not None:
                    commit = f"commit {held.commit[:7]}" if held.commit else "of no known commit"
                    lines.append(f"read {source.value} from {held.files[options['split']]}, {commit}")
    inner = (teacher.recipe for teacher in recipe.teachers if teacher.recipe is not None)
    return list(dict.fromkeys([*lines, *chain.from_iterable(map(mirrors_read, inner))]))


def _merged(wanted: Iterator[_Wanted]) -> list[list[_Wanted]]:
    """The same data set at several places together."""
    groups: dict[str, list[_Wanted]] = {}
    for one in wanted:
        groups.setdefault(one.name, []).append(one)
    return [*groups.values()]


def _looked(group: Sequence[_Wanted]) -> DataSet:
    """The data set of a group: missing or in part if one of its splits is; files of several splits add up."""
    found: list[DataSet] = []
    for one in {(one.splits, one.as_table): one for one in group}.values():
        try:
            found.append(one.look())
        except (MissingResourceError, DataError, UsageError) as error:
            found.append(DataSet(one.name, (), "missing", one.splits, fault=str(error)))
    order: tuple[State, ...] = ("missing", "on the Hub", "not fetched", "in part")
    worst = min(found, key=lambda one: order.index(one.state) if one.state in order else len(order))
    states, by_splits = {one.state for one in found}, {one.splits: one for one in found}
    return replace(
        worst,
        name=group[0].name,
        state="in part" if states == {"on the Hub", "cached"} else worst.state,
        places=tuple(dict.fromkeys(one.place for one in group)),
        splits=tuple(dict.fromkeys(split for one in found for split in one.splits)),
        files=_sum(one.files for one in by_splits.values()),
        num_bytes=_sum(one.num_bytes for one in by_splits.values()),
    )


def _sum(numbers: Iterator[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _of_recipe(recipe: Recipe, prefix: str = "") -> Iterator[_Wanted]:
    labelled = recipe.language_task is None
    for part in ("train", "validation"):
        for source in getattr(recipe.data, part) or ():
            yield _of_source(f"{prefix}data.{part}", source, labelled=labelled)
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            yield from _of_recipe(teacher.recipe, f"{prefix}teachers.{teacher.name}.")
    for number, entry in enumerate(recipe.eval):
        yield from _of_suite(f"{prefix}eval[{number}] ({entry.suite})", SUITES[entry.suite], entry.options)


def _of_source(place: str, source: Source, *, labelled: bool) -> _Wanted:
    as_table = labelled or source.chat is not None
    options = source.options(labelled=as_table)
    if source.kind == "hub":
        name = hub_name(source.value, "dataset", revision=options["revision"])
        found = of_hub(place, name, options["name"], (options["split"],), as_table=as_table)
        if source.limit is None or as_table:
            return found
        later = f"{found.name}: fetched as far as its limit needs when it is read"
        return replace(found, fetch=partial(note, later))
    if source.kind == "path" and "://" in source.value:
        look = partial(_at_address, source.value, as_table)
        return _Wanted(source.value, place, (), look, partial(source.entry.files, source.value, as_table))

    def look_here() -> DataSet:
        source.require(labelled=labelled)
        return _of_files(str(source.value), "here", source.entry.files(source.value, as_table))

    kind = "" if source.kind == "path" else f"{source.kind} "
    return _Wanted(f"{kind}{source.value}", place, (), look_here)


def _at_address(address: str, as_table: bool) -> DataSet:
    """What the cache holds of an address; no server is asked."""
    copy, size = remote.cached(address)
    if copy is not None:
        return _of_files(address, "cached", text_files(copy, kinds=ROWS if as_table else TEXTS))
    return DataSet(address, (), "in part" if size else "not fetched", num_bytes=size or None)


def _of_files(name: str, state: State, files: Sequence[Path]) -> DataSet:
    size = sum(path.stat().st_size for path in files) if files else None
    return DataSet(name, (), state if files else "generated", files=len(files) or None, num_bytes=size)


def _of_suite(place: str, suite: Suite, options: Mapping[str, Any]) -> Iterator[_Wanted]:
    if suite.fine_tunes:
        for job in suite.function(**options):
            if job.seed == 1 and (wanted := job.wanted) is not None:
                dataset, configuration = wanted.hub
                name = benchmark_name(dataset)
                found = of_hub(place, name, configuration, wanted.splits, as_table=True)
                part = partial(_or_subset, found.look, name, configuration, wanted.splits)
                yield replace(found, look=part)
        return
    try:
        by_task = suite.data_by_task(options)
    except (MissingResourceError, UsageError) as error:
        yield _Wanted(place, place, (), partial(_raise, error), partial(_raise, error))
        return
    for task, data in by_task.items():
        if data.reads is not None:
            asked, configuration, splits = data.reads
            yield of_hub(place, benchmark_name(asked), configuration, splits, as_table=False)
            continue
        for asked, info in data.repos.items():
            yield _Wanted(asked, place, (), partial(_whole, asked, info), partial(suite.check, options))
        if data.local is not None and not data.repos:
            yield _Wanted(f"{suite.name} {task}", place, (), partial(_local, f"{suite.name} {task}", data))


def _raise(error: Exception) -> Any:
    raise error


def _or_subset(
    look: Callable[[], DataSet], name: HubName, configuration: str | None, splits: tuple[str, ...]
) -> DataSet:
    """What ``look`` finds, or the part of the training examples that a suite reads without the Hub."""
    try:
        return look()
    except MissingResourceError:
        paths = [*found_files(name.id, configuration, splits, subset=True).values()]
        if len(paths) < len(splits):
            raise
        where = f"{paths[0]}: a part of the examples"
        size = sum(path.stat().st_size for path in paths)
        words = f"{name}{f' ({configuration})' if configuration else ''}"
        return DataSet(words, (), "in part", splits, where, len(paths), size)


def of_hub(
    place: str, name: HubName, configuration: str | None, splits: tuple[str, ...], *, as_table: bool
) -> _Wanted:
    """Splits of a data set: of a mirror, or else of the Hub, file by file or (``as_table``) as a table."""
    words = f"{name}{f' ({configuration})' if configuration else ''}"

    def look() -> DataSet:
        held = mirror(name, configuration, splits)
        if held is not None:
            paths = [*held.files.values()]
            where = f"{paths[0].parent}{f' (commit {held.commit[:7]})' if held.commit else ''}"
            size = sum(path.stat().st_size for path in paths)
            return DataSet(words, (), "mirror", splits, where, len(paths), size)
        return hub_state(words, pins.current().resolve(name), configuration, splits, as_table=as_table)

    def fetch() -> None:
        info = pins.current().resolve(name)
        found = None if as_table else split_files.listed(info, configuration)
        if found is None or not found.reader:
            tables.read_splits(info, configuration)
            return
        for split in splits:
            for file in split_files.files_of(info, configuration, split)[1]:
                split_files.fetched(info, file)

    return _Wanted(words, place, splits, look, fetch, as_table)


def hub_state(
    words: str, info: RepoInfo, configuration: str | None, splits: Sequence[str], *, as_table: bool
) -> DataSet:
    """The state and size of splits of a data set at its commit; the Hub may be asked for their files.

    Files alone are not enough ``as_table``, since the library makes the table.
    """
    files: list[str] = []
    with suppress(MissingResourceError):
        files = [file for split in splits for file in split_files.files_of(info, configuration, split)[1]]
    there = split_files.cached(info, files)
    has_files = not as_table and files and len(there) == len(files)
    is_made = tables.prepared_by(info, configuration) is not None
    has_rows = is_made if as_table else has_table(info, configuration)
    is_cached = has_files or has_rows
    state: State = "cached" if is_cached else "in part" if there else "on the Hub"
    return DataSet(
        words,
        (),
        state,
        tuple(splits),
        f"commit {info.commit[:7]}",
        len(files) or None,
        size_of(info, files) or None,
        info.licence,
    )


def _whole(name: str, info: RepoInfo) -> DataSet:
    """A data set of which a suite reads configurations that only its library knows."""
    sizes = [file.size for file in (info.files or {}).values()]
    prepared = tables.prepared(info)
    state: State = "cached" if prepared else "on the Hub"
    where = f"commit {info.commit[:7]}" + (f", {len(prepared)} configurations" if prepared else "")
    return DataSet(name, (), state, (), where, len(sizes) or None, sum(sizes) or None, info.licence)


def _local(words: str, data: SuiteData) -> DataSet:
    state: State = "generated" if data.library and data.version is None else "mirror"
    return DataSet(words, (), state, where=f"hash {str(data.local)[:7]}")
