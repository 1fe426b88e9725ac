"""What a single source is: its files, splits, columns, size and licence.

Compressed files and archives are read through, since nothing else shows that they are whole.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from stlm_kd.activity import advanced, doing
from stlm_kd.data.sources import remote
from stlm_kd.data.sources.files import ROWS, TEXTS, is_compressed, kind_of, lines_of, open_bytes, text_files
from stlm_kd.data.sources.formats.columnar import parquet_facts
from stlm_kd.data.sources.tables import read_rows
from stlm_kd.errors import DataError, MissingResourceError, one_line
from stlm_kd.notes import note
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets import split_files, tables
from stlm_kd.sharing.data_sets.named import mirror
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.sharing.names import HubName, expanded, hub_name_or_path
from stlm_kd.sharing.snapshot import size_of


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """The files of a split, their size, and its rows if a card or the files' headers state them."""

    files: int
    num_bytes: int
    rows: int | None = None


@dataclass(frozen=True, slots=True)
class DataInfo:
    """A source of data.

    Attributes:
        name: The path, or the id on the Hub.
        commit: Of the Hub.
        mirror: The files here that are read in place of the Hub.
        licence: As the card states.
        gated: Whether its terms have to be accepted first.
        configurations: The names to choose from, if one has to be chosen.
        splits: By name; "" for a path.
        columns: Of a table.
    """

    name: str
    commit: str | None = None
    mirror: str | None = None
    licence: str | None = None
    gated: bool = False
    configurations: tuple[str, ...] = ()
    splits: Mapping[str, SplitInfo] = field(default_factory=dict)
    columns: tuple[str, ...] = ()


def data_info(source: str, configuration: str | None = None) -> DataInfo:
    """What a source is: ``[hub:]org/name[@revision]``, a file or folder, or an address that was fetched.

    Args:
        source: The source; a name of the Hub that a file or folder here has is that.
        configuration: The configuration of a data set that has several.

    Raises:
        MissingResourceError: Not there; or refused by the Hub, or it cannot be reached.
        DataError: No files of a known kind; no such configuration, or a damaged file.
    """
    name = hub_name_or_path(source, "dataset")
    return _of_path(source) if name is None else _of_hub(name, configuration)


def _of_path(source: str) -> DataInfo:
    kinds = [[*chain(*TEXTS, *ROWS)]]
    files = text_files(_here(source), kinds=kinds)
    with doing(f"looking at {one_line(source)}"):
        rows = [_rows_in(path) for path in files]
    total = sum(number for number in rows if number is not None) if None not in rows else None
    size = sum(path.stat().st_size for path in files)
    return DataInfo(source, splits={"": SplitInfo(len(files), size, total)}, columns=_columns(files[0]))


def _here(source: str) -> Path:
    """The path, or the copy of an address; nothing is fetched."""
    if "://" not in source:
        return expanded(source)
    copy, _ = remote.cached(source)
    if copy is None:
        raise MissingResourceError(
            f"{one_line(source)}: not fetched yet; stlm-kd data get RECIPE fetches what a recipe names"
        )
    return copy


def _rows_in(path: Path) -> int | None:
    """The number of rows, of kinds that state it, or of which the whole file has to be read to check it."""
    if kind_of(path) == "parquet":
        return parquet_facts(path)[0]
    if kind_of(path) == "tar":
        return sum(1 for _ in read_rows(path, columns=()))
    if is_compressed(path):
        with open_bytes(path) as file:
            while file.read(1 << 20):
                advanced()
    return None


def _columns(path: Path) -> tuple[str, ...]:
    """The columns of a table, as its header or its first row has them; none of other kinds of files."""
    kind = kind_of(path)
    if kind == "parquet":
        return tuple(parquet_facts(path)[1])
    if kind not in ("json lines", "csv", "tsv"):
        return ()
    if not (first := next(lines_of(path), "")):
        return ()
    if kind != "json lines":
        return tuple(next(csv.reader([first], delimiter="\t" if kind == "tsv" else ","), ()))
    try:
        return tuple(json.loads(first))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}:1: {one_line(first.strip())[:40]} found; expected a JSON object") from error


def _of_hub(name: HubName, configuration: str | None) -> DataInfo:
    info = pins.current().resolve(name)
    card = _card(info)
    configs = [str(one["config_name"]) for one in _listed(card.get("configs")) if "config_name" in one]
    facts: dict[str, Any] = {
        "commit": info.commit,
        "licence": info.licence,
        "gated": bool(info.gated),
    }
    if configuration is None and len(configs) > 1:
        return DataInfo(info.id, configurations=tuple(configs), **facts)
    found = split_files.listed(info, configuration)
    stated = next(
        (
            one
            for one in _listed(card.get("dataset_info"))
            if one.get("config_name", configuration) == configuration or len(configs) < 2
        ),
        {},
    )
    rows = {str(one.get("name")): _stated_rows(info, one) for one in _listed(stated.get("splits"))}
    held = mirror(name, configuration, tuple(found.splits))
    return DataInfo(
        info.id,
        mirror=None if held is None else str(next(iter(held.files.values())).parent),
        splits={
            split: SplitInfo(len(files), size_of(info, files), rows.get(split))
            for split, files in found.splits.items()
        },
        columns=tuple(str(one.get("name")) for one in _listed(stated.get("features"))),
        **facts,
    )


def _stated_rows(info: RepoInfo, split: Mapping[str, Any]) -> int | None:
    """The number of rows that a card states for a split; of something else, a note, and None."""
    rows = split.get("num_examples")
    if rows is None or (isinstance(rows, int) and not isinstance(rows, bool) and rows >= 0):
        return rows
    found = one_line(repr(rows))[:40]
    note(f"{info.pinned}: its card states {found} rows of the split {one_line(split.get('name'))}; not shown")
    return None


def _card(info: RepoInfo) -> Mapping[str, Any]:
    """The metadata of a data set's card; empty without one."""
    if "README.md" not in (info.files or {}):
        return {}
    split_files.fetched(info, "README.md")
    return tables.card(info)


def _listed(value: object) -> Sequence[Mapping[str, Any]]:
    """The mappings of a list, or the only one: a card is written by hand."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, dict)]
