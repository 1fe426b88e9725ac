"""The commits at which the built-in suites read their data sets, so that users' scores are comparable.

``pins.json`` holds a commit that was read from the Hub for each data set, or null: such a data set is
unpinned and read at the commit of its main branch. ``refresh_pins`` asks the Hub for all of them
(``make pins``).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from stlm_kd.artifacts.atomic import write_json, writing
from stlm_kd.notes import note
from stlm_kd.sharing import pins
from stlm_kd.sharing.hub import RepoInfo, info
from stlm_kd.sharing.names import HubName, hub_name

FILE = Path(__file__).with_name("pins.json")


@cache
def default_pins() -> dict[str, str | None]:
    """The commit of each built-in data set; None if it is unpinned."""
    found: dict[str, str | None] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def benchmark_name(dataset: str) -> HubName:
    """A suite's data set, ``id[@revision]``; without a revision, the default one."""
    name = hub_name(dataset, "dataset")
    default = default_pins().get(name.id)
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
    before: dict[str, str | None] = json.loads(FILE.read_text(encoding="utf-8"))
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
