"""Locates the data of fine-tuning benchmarks: local files or the Hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stlm_kd.errors import MissingResourceError, first_of
from stlm_kd.eval.pins import DATA, benchmark, benchmark_name
from stlm_kd.sharing import data_sets

Source = Literal["auto", "local", "hub"]

TRAIN, VALIDATION = "train", "validation"
_SUBSET = "train_subset"
_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet", ".csv", ".tsv")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task's required data.

    Attributes:
        suite: The suite.
        name: The task.
        folder: Its folder within ``STLM_KD_DATA``.
        hub: Its data set on the Hub (``id[@revision]``), and the configuration.
        splits: The required splits, ``train`` first.
    """

    suite: str
    name: str
    folder: str
    hub: tuple[str, str | None]
    splits: tuple[str, ...] = (TRAIN, VALIDATION)


@dataclass(frozen=True, slots=True)
class Found:
    """The location of a task's splits, in files or on the Hub; and notes on the scores."""

    files: Mapping[str, str] | None
    hub: tuple[str, str | None]
    notes: tuple[str, ...] = ()

    def file(self, split: str) -> str | None:
        """The file of a split; None if it is on the Hub."""
        return None if self.files is None else self.files[split]


def locate(wanted: Sequence[Wanted], source: Source) -> dict[str, Found]:
    """The location of each task's data, by the task's name.

    Order of preference: complete local files, the Hub or its cache, local files with a subset of the training
    examples. A data set with a revision is read from the Hub alone.

    Args:
        wanted: All required tasks.
        source: ``local``, ``hub``, or ``auto`` for either.

    Raises:
        MissingResourceError: Data is missing; one message lists what, and where to put it, for all tasks.
    """
    places = {one.name: _place(one, source) for one in wanted}
    found = {name: place for name, place in places.items() if isinstance(place, Found)}
    missing = [place for place in places.values() if isinstance(place, str)]
    if missing:
        rest = f"; without them: tasks: [{', '.join(found)}]" if found else ""
        first = f"{wanted[0].suite}: data of {len(missing)} of {len(wanted)} tasks is missing{rest}"
        raise MissingResourceError("\n".join([first, *first_of(missing)]))
    return found


def _place(wanted: Wanted, source: Source) -> Found | str:
    """The location of the data, or a description of what is missing."""
    if "@" in wanted.hub[0]:
        source = "hub"
    files = _files(wanted) if source != "hub" else {}
    absent = [split for split in wanted.splits if split not in files]
    if not absent and _SUBSET not in files[TRAIN]:
        return Found(files, wanted.hub)
    reason = _hub_fault(wanted) if source != "local" else ""
    if source != "local" and not reason:
        dataset, name = wanted.hub
        return Found(None, (str(benchmark(dataset).pinned), name))
    if not absent:
        note = f"{wanted.name}: trained on {files[TRAIN]}, a part of its examples"
        return Found(files, wanted.hub, (note,))
    own = _folder(wanted)
    place = f"set {DATA} to a folder with {wanted.folder}/" if own is None else str(own)
    local = "" if source == "hub" else f"no {', '.join(f'{split}.jsonl[.gz]' for split in absent)} ({place})"
    return f"  {wanted.name}: {'; '.join(part for part in (local, reason) if part)}"


def _folder(wanted: Wanted) -> Path | None:
    data = os.environ.get(DATA)
    return Path(data) / wanted.folder if data else None


def _files(wanted: Wanted) -> dict[str, str]:
    """The existing files of the splits; for training, a subset if the complete file is missing."""
    folder = _folder(wanted)
    if folder is None:
        return {}
    found: dict[str, str] = {}
    for split in wanted.splits:
        names = (split, _SUBSET) if split == TRAIN else (split,)
        paths = [folder / f"{name}{ending}" for name in names for ending in _ENDINGS]
        there = next((path for path in paths if path.is_file()), None)
        if there is not None:
            found[split] = str(there)
    return found


def _hub_fault(wanted: Wanted) -> str:
    """Why the Hub does not have it; "" if it does."""
    dataset, name = wanted.hub
    try:
        data_sets.require(benchmark_name(dataset), name)
    except MissingResourceError as error:
        return f"{dataset}: {str(error).removeprefix(f'{dataset}: ')}"
    return ""
