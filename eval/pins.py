"""The commits at which the built-in suites read their data sets, so that users' scores are comparable.

``pins.json`` holds a commit that was read from the Hub for each data set, or null: such a data set is
unpinned and read at the commit of its main branch. ``refresh_pins`` asks the Hub for all of them
(``make pins``).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeAlias

from stlm_kd.artifacts.atomic import read_json, write_json, writing
from stlm_kd.data.sources.files import file_facts
from stlm_kd.data.sources.sources import hash_of
from stlm_kd.errors import UsageError
from stlm_kd.notes import note
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets.named import named_by
from stlm_kd.sharing.hub import RepoInfo, info
from stlm_kd.sharing.names import HubName, hub_name

FILE = Path(__file__).with_name("pins.json")

Named: TypeAlias = str | Sequence[str] | None
"""A suite's option ``hub``: data sets that it reads, at other revisions."""


@dataclass(frozen=True, slots=True)
class SuiteData:
    """What a task of a suite reads beside the held-out data.

    Attributes:
        repos: Data sets of the Hub at their commits, by the name that was asked for: ``id[@revision]``.
        local: Hash (hex) of the files that are read in their place, or of what identifies generated examples.
        version: Version of the task, as its library states.
        library: Name and version of the library that has the task.
        reads: The name that is asked for, its configuration and its splits, if only these are read.
    """

    repos: Mapping[str, RepoInfo] = field(default_factory=dict)
    local: str | None = None
    version: str | None = None
    library: str | None = None
    reads: tuple[str, str | None, tuple[str, ...]] | None = None


def data_of(dataset: str, files: Sequence[Path] = (), *, is_whole: bool = True) -> SuiteData:
    """A suite's data set at its commit, or the files that are read in its place.

    Files are the data set only if a file ``hub.json`` says so, and they are all of it.

    Args:
        dataset: ``id[@revision]``.
        files: The files; none if it is read from the Hub.
        is_whole: Whether the files have all examples.

    Raises:
        MissingResourceError: As ``benchmark``; or a file cannot be read.
        DataError: A file ``hub.json`` is malformed.
    """
    if not files:
        return SuiteData({dataset: benchmark(dataset)})
    name = hub_name(dataset, "dataset")
    mirrored = named_by(files[0].parent) if is_whole else None
    if mirrored is not None and mirrored.id == name.id:
        return SuiteData({dataset: RepoInfo("dataset", name.id, name.revision, mirrored.revision or "")})
    return SuiteData(local=hash_of(file_facts(files)))


def names_in(named: Named) -> tuple[str, ...]:
    """The names in a suite's option ``hub``, one or a list."""
    return (named,) if isinstance(named, str) else tuple(named or ())


def at_revision(dataset: str, named: Named) -> str:
    """A suite's data set as its option ``hub`` names it: ``id@revision`` if that is one of ``named``."""
    own = dataset.partition("@")[0]
    return next((name for name in names_in(named) if hub_name(name, "dataset").id == own), dataset)


def require_named(datasets: Collection[str], named: Named, *, suite: str) -> None:
    """Refuse names in a suite's option ``hub`` of other data sets than the suite reads.

    Raises:
        UsageError: There is one.
        MissingResourceError: A malformed name.
    """
    own = {dataset.partition("@")[0] for dataset in datasets}
    for name in names_in(named):
        if hub_name(name, "dataset").id not in own:
            known = ", ".join(sorted(own)) or "nothing"
            raise UsageError(f"{suite}: hub: {name} found; expected a revision of what it reads: {known}")


@cache
def default_pins() -> dict[str, str | None]:
    """The commit of each built-in data set; None if it is unpinned."""
    found: dict[str, str | None] = read_json(FILE)
    return found


def benchmark_name(dataset: str) -> HubName:
    """A suite's data set, ``id[@revision]``; without a revision, as locked, or else the default one."""
    name = hub_name(dataset, "dataset")
    default = pins.current().benchmark(name.id) or default_pins().get(name.id)
    return name if name.revision or default is None else name.at(default)


def benchmark(dataset: str) -> RepoInfo:
    """A suite's data set, ``id[@revision]``, at the commit of this command.

    Raises:
        MissingResourceError: As ``stlm_kd.sharing.pins.Pins.resolve``.
    """
    name = benchmark_name(dataset)
    found = pins.current().resolve(name)
    if name.revision is None and name.id in default_pins():
        note(f"{dataset}: unpinned (no commit in eval/pins.json); read at {found.commit[:7]}, now its main")
    return found


def refresh_pins(file: Path = FILE) -> dict[str, tuple[str | None, str]]:
    """Write the commits that the data sets' main branches have now; return the changes, old and new.

    Raises:
        MissingResourceError: A data set is missing, the Hub cannot be reached, or the file cannot be written;
            it is unchanged then.
    """
    before: dict[str, str | None] = read_json(FILE)
    after = {dataset: info(HubName("dataset", dataset)).commit for dataset in sorted(before)}
    with writing(file, "file"):
        write_json(file, after)
    default_pins.cache_clear()
    return {
        dataset: (before[dataset], commit) for dataset, commit in after.items() if before[dataset] != commit
    }


if __name__ == "__main__":
    for dataset, (old, new) in refresh_pins().items():
        print(f"{dataset}: {old or 'unpinned'} → {new}")
