"""Locates the data of fine-tuning benchmarks: local files or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stlm_kd.errors import MissingResourceError, first_of
from stlm_kd.eval.pins import benchmark, benchmark_name
from stlm_kd.sharing.data_sets import tables
from stlm_kd.sharing.data_sets.named import DATA, TRAIN, found_files, layout_of, mirror, mirror_folder
from stlm_kd.sharing.names import hub_name

Source = Literal["auto", "local", "hub"]

VALIDATION = "validation"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A task's required data.

    Attributes:
        suite: The suite.
        name: The task.
        hub: Its data set on the Hub (``id[@revision]``), and the configuration.
        splits: The required splits, ``train`` first.
    """

    suite: str
    name: str
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

    Order of preference: a mirror (``stlm_kd.sharing.data_sets.named``), the Hub or its cache, a mirror with a
    part of the training examples.

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
    dataset, configuration = wanted.hub
    name = hub_name(dataset, "dataset")
    if source != "hub" and (held := mirror(name, configuration, wanted.splits)) is not None:
        return Found({split: str(path) for split, path in held.files.items()}, wanted.hub)
    reason = _hub_fault(wanted) if source != "local" else ""
    if source != "local" and not reason:
        return Found(None, (str(benchmark(dataset).pinned), configuration))
    here = source != "hub" and name.revision is None
    parts = found_files(name.id, configuration, wanted.splits, subset=True) if here else {}
    absent = [split for split in wanted.splits if split not in parts]
    if not absent:
        note = f"{wanted.name}: trained on {parts[TRAIN]}, a part of its examples"
        return Found({split: str(path) for split, path in parts.items()}, wanted.hub, (note,))
    place = mirror_folder(name.id, configuration) or (
        f"set {DATA} to a folder with {layout_of(name.id, configuration).folder}/"
    )
    local = f"no {', '.join(f'{split}.jsonl[.gz]' for split in absent)} ({place})" if here else ""
    return f"  {wanted.name}: {'; '.join(part for part in (local, reason) if part)}"


def _hub_fault(wanted: Wanted) -> str:
    """Why the Hub does not have it; "" if it does."""
    dataset, name = wanted.hub
    try:
        tables.require(benchmark_name(dataset), name)
    except MissingResourceError as error:
        return f"{dataset}: {str(error).removeprefix(f'{dataset}: ')}"
    return ""
