"""The commits at which the built-in suites read their data sets, so that users' scores are comparable.

``pins.json`` holds a commit that was read from the Hub for each data set, or null: such a data set is
unpinned and read at the commit of its main branch. ``refresh_pins`` asks the Hub for all of them.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from stlm_kd.artifacts.atomic import write_json, writing
from stlm_kd.notes import note
from stlm_kd.sharing import pins
from stlm_kd.sharing.hub import RepoInfo, info
from stlm_kd.sharing.names import HubName

FILE = Path(__file__).with_name("pins.json")


@cache
def default_pins() -> dict[str, str | None]:
    """The commit of each built-in data set; None if it is unpinned."""
    found: dict[str, str | None] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def benchmark(dataset: str, *, revision: str | None = None) -> RepoInfo:
    """A suite's data set at the commit of this command: of ``revision`` if given, else the default one.

    Raises:
        MissingResourceError: As ``stlm_kd.sharing.pins.Pins.resolve``.
    """
    default = default_pins().get(dataset)
    found = pins.current().resolve(HubName("dataset", dataset, revision or default))
    if revision is None and default is None:
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
