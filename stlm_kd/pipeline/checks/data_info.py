"""What a single source is: its files, splits, columns, size and licence, without reading its rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from stlm_kd.data.sources.files import ROWS, TEXTS, kind_of, lines_of, text_files
from stlm_kd.errors import DataError, one_line
from stlm_kd.sharing import pins
from stlm_kd.sharing.data_sets import split_files
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
    """What a source is: ``[hub:]org/name[@revision]``, or a file or folder.

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
    files = text_files(expanded(source), kinds=kinds)
    rows = [_rows_in(path) for path in files]
    total = sum(number for number in rows if number is not None) if None not in rows else None
    size = sum(path.stat().st_size for path in files)
    return DataInfo(source, splits={"": SplitInfo(len(files), size, total)}, columns=_columns(files[0]))


def _rows_in(path: Path) -> int | None:
    """The number of rows, of kinds that state it."""
    if kind_of(path) != "parquet":
        return None
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import read_metadata

    try:
        return int(read_metadata(path).num_rows)
    except ArrowInvalid as error:
        raise DataError(f"{path}: not a complete Parquet file ({error}); fetch it again") from error


def _columns(path: Path) -> tuple[str, ...]:
    """The columns of a table, as its header or its first row has them; none of other kinds of files."""
    kind = kind_of(path)
    if kind == "parquet":
        from pyarrow.parquet import read_schema

        return tuple(read_schema(path).names)
    if kind not in ("json lines", "csv", "tsv"):
        return ()
    first = next(lines_of(path), "")
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
    rows = {str(one.get("name")): one.get("num_examples") for one in _listed(stated.get("splits"))}
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


def _card(info: RepoInfo) -> Mapping[str, Any]:
    """The metadata of a data set's card; empty without one."""
    from huggingface_hub import DatasetCard

    if "README.md" not in (info.files or {}):
        return {}
    found: dict[str, Any] = DatasetCard.load(split_files.fetched(info, "README.md")).data.to_dict()
    return found


def _listed(value: object) -> Sequence[Mapping[str, Any]]:
    """The mappings of a list, or the only one: a card is written by hand."""
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, dict)]
