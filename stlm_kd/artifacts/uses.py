"""What the stages of a run are to it: a file in its folder that grows with each stage it makes or finds.

It is begun when the run starts, and goes with the folder: stages that no run names can be deleted.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from stlm_kd.artifacts.atomic import read_plain, write_text
from stlm_kd.errors import CheckpointError

USES = "stages.log"
_LINE = re.compile(rb"([0-9a-f]{8}) (.*)")
"""Checksum and JSON."""


def begin_uses(run: Path) -> None:
    """Begin the file of a run, unless it has one that can be read."""
    try:
        uses_of(run)
    except CheckpointError:
        write_text(run / USES, "")


def add_use(run: Path, stage: str, what: str) -> None:
    """Add what a stage is to a run, unless it is known."""
    if what in known_uses(run, stage) or not run.is_dir():
        return
    with (run / USES).open("ab", buffering=0) as file:  # one write, which other processes cannot interrupt
        text = json.dumps([stage, what]).encode()
        file.write(b"%08x %s\n" % (zlib.crc32(text), text))


def known_uses(run: Path, stage: str) -> tuple[str, ...]:
    """What a stage is to a run; () if that is not known."""
    try:
        return uses_of(run).get(stage, ())
    except CheckpointError:  # said by the commands that need it
        return ()


def uses_of(run: Path) -> Mapping[str, tuple[str, ...]]:
    """What each stage is to a run, by the name of its folder, in the order of use.

    Raises:
        CheckpointError: The run has no such file, because an earlier version made it, or it is damaged.
    """
    path = run / USES
    found: dict[str, tuple[str, ...]] = {}
    try:
        for line in read_plain(path).splitlines():
            match = _LINE.fullmatch(line)
            if match is None or int(match[1], 16) != zlib.crc32(match[2]):
                raise ValueError("not a line of this file")
            stage, what = json.loads(match[2])
            if what not in (before := found.get(stage, ())):
                found[stage] = (*before, what)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        raise CheckpointError(
            f"{path}: which stages the run uses cannot be read ({reason}); give the run's "
            "command again, or move the run away"
        ) from error
    return found
