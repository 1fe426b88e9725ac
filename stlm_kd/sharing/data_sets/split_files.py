"""The files of each split of a data set at its commit, so that a text is read file by file.

The ``datasets`` library says which they are (a card's ``configs``, or the names of files); that is
remembered, since a commit never changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.errors import DataError, MissingResourceError
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets import tables
from stlm_kd.sharing.hub import RepoInfo, known_place, remember_fetched, snapshots
from stlm_kd.sharing.snapshot import fetch

if TYPE_CHECKING:
    from datasets import DatasetBuilder

_OF_DATA = {"name", "version", "data_dir", "data_files", "description", "features"}
"""Settings of the library's readers that do not change how a file is read."""


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The files of a configuration, by split, in the order in which the library reads them.

    Attributes:
        reader: The library's reader, such as ``parquet``; "" if it has options, or files elsewhere.
        splits: Paths in the repository.
    """

    reader: str
    splits: Mapping[str, Sequence[str]]


_KNOWN: TypeAdapter[SplitFiles] = TypeAdapter(SplitFiles)


def listed(info: RepoInfo, configuration: str | None) -> SplitFiles:
    """The files of a configuration (None: the only one); the Hub is asked once for each commit.

    Raises:
        MissingResourceError: As ``stlm_kd.sharing.data_sets.tables.read_splits``; or a file changed.
        DataError: No such configuration.
    """
    found = known(info, configuration)
    if found is None:
        found = _of_builder(info, tables.builder(info, configuration))
        try:
            place = _place(info, configuration)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_text(place, json.dumps(asdict(found)))
        except OSError:  # a full or foreign disk: the next command asks again
            pass
    else:
        tables.check_downloads(info)
    return found


def known(info: RepoInfo, configuration: str | None) -> SplitFiles | None:
    """Like ``listed``, without the Hub; None if it was not asked yet."""
    try:
        return _KNOWN.validate_json(_place(info, configuration).read_bytes())
    except (OSError, ValidationError):
        return None


def files_of(info: RepoInfo, configuration: str | None, split: str) -> tuple[str, Sequence[str]]:
    """The library's reader for a split, and its files; errors as ``listed``, or there is no such split."""
    found = listed(info, configuration)
    if split not in found.splits:
        raise DataError(f"{info.id}: no split {split!r}; it has {', '.join(sorted(found.splits))}")
    return found.reader, found.splits[split]


def fetched(info: RepoInfo, name: str) -> Path:
    """A file at its commit, downloaded unless it is cached, and checked; errors as ``snapshot.fetch``."""
    (file,) = fetch(info, [name], offline=bool(pins.current().failure))
    remember_fetched(info)
    return file


def fetch_ahead(info: RepoInfo, name: str) -> None:
    """Download a file that is not needed yet, unless it is cached; errors as ``fetched``.

    One with another hash is removed: it may never be needed.
    """
    if cached(info, [name]):
        return
    try:
        fetched(info, name)
    except MissingResourceError:
        link = snapshots(info.pinned) / info.commit / name
        link.resolve().unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        raise


def cached(info: RepoInfo, names: Sequence[str]) -> list[str]:
    """Those of these files that are in the cache."""
    folder = snapshots(info.pinned) / info.commit
    return [name for name in names if (folder / name).is_file()]


def _of_builder(info: RepoInfo, found: DatasetBuilder) -> SplitFiles:
    settings = [row for row in fields(found.config) if row.name not in _OF_DATA]
    defaults = {row.name: None if row.default is MISSING else row.default for row in settings}
    is_plain = all(getattr(found.config, name) == default for name, default in defaults.items())
    prefix = f"hf://datasets/{info.id}@{info.commit}/"
    urls = {str(split): [*map(str, paths)] for split, paths in (found.config.data_files or {}).items()}
    if not all(url.startswith(prefix) for paths in urls.values() for url in paths):
        return SplitFiles("", urls)
    packaged = (kind.__module__.split(".") for kind in type(found).__mro__)
    names = [parts[2] for parts in packaged if parts[:2] == ["datasets", "packaged_modules"]]
    return SplitFiles(
        names[0] if names and is_plain else "",
        {split: [url.removeprefix(prefix) for url in paths] for split, paths in urls.items()},
    )


def _place(info: RepoInfo, configuration: str | None) -> Path:
    return known_place(info.pinned, info.commit, f"splits {configuration or ''}")
