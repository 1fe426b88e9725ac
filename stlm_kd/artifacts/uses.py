"""What the stages of a run are to it: a file in its folder that grows with each stage it makes or finds.

It is begun when the run is created, and goes with the folder: stages that no run names can be deleted. One
that was lost or damaged is begun anew with what can be read of it, and is marked as incomplete until the run
is done, which uses all its stages once more.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter

from stlm_kd.artifacts.atomic import in_the_way, read_plain, write_text
from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.errors import CheckpointError

USES = "stages.log"
_LINE = re.compile(rb"([0-9a-f]{8}) (.+)")
"""Checksum and JSON: the name of a stage's folder and what it is, or the mark."""

_INCOMPLETE = "incomplete"
_BEGUN_ANEW = "it was lost or damaged, and the run has not been done since"
_ENTRIES: TypeAdapter[tuple[str, str]] = TypeAdapter(tuple[str, str])
_Uses = dict[str, tuple[str, ...]]


def begin_uses(run: Path, *, created: bool = False) -> None:
    """Begin the file of a run, unless it has one that is whole; a run that is just created has lost none."""
    try:
        found, reason = _read(run)
    except OSError as error:
        if created and isinstance(error, FileNotFoundError):
            write_text(run / USES, "")
            return
        found, reason = {}, "gone"
    if reason:
        _write(run, found, is_complete=False)


def complete_uses(run: Path) -> None:
    """Remove the mark of a file that was begun anew: the run has used all its stages since."""
    try:
        found, reason = _read(run)
    except OSError:  # said by the commands that need it
        return
    if reason == _BEGUN_ANEW:
        _write(run, found, is_complete=True)


def add_use(run: Path, stage: str, what: str) -> None:
    """Add what a stage is to a run, unless it is known.

    Raises:
        OSError: It cannot be written.
    """
    if what in known_uses(run).get(stage, ()) or not run.is_dir():
        return
    if not os.path.lexists(run / USES):  # lost since the run began
        begin_uses(run)
    line = _line([stage, what])
    with (run / USES).open("ab", buffering=0) as file:  # one write, which other processes cannot interrupt
        if file.write(line) != len(line):  # the cut line shows that the file is incomplete
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(run / USES))


def known_uses(run: Path) -> Mapping[str, tuple[str, ...]]:
    """Like ``uses_of``, as far as it is known."""
    try:
        return _read(run)[0]
    except OSError:  # said by the commands that need it
        return {}


def uses_of(run: Path, *, digest: str | None = None) -> Mapping[str, tuple[str, ...]]:
    """What each stage is to a run, by the name of its folder, in the order of use.

    Args:
        run: The run's folder.
        digest: The hash of the file as it was when the run was done, if that is known.

    Raises:
        CheckpointError: The run has no such file, because an earlier version made it, or it is damaged, or
            was begun anew since and the run is not done.
    """
    try:
        found, reason = _read(run)
        if digest not in (None, known_sha256(run / USES)):
            reason = reason or "changed since the run was done"
    except OSError as error:
        found, reason = {}, in_the_way(error) or error.strerror or type(error).__name__
    if reason:
        raise CheckpointError(
            f"{run / USES}: which stages the run uses cannot be read ({reason}); give the run's "
            "command again and let it end, or move the run away"
        )
    return found


def _read(run: Path) -> tuple[_Uses, str]:
    """What can be read of a run's file, and why this is not all; "" if it is."""
    found: _Uses = {}
    reason = ""
    for line in read_plain(run / USES).splitlines():
        match = _LINE.fullmatch(line)
        if match is None or int(match[1], 16) != zlib.crc32(match[2]):
            reason = "damaged" if line else reason
        elif match[2] == json.dumps(_INCOMPLETE).encode():
            reason = reason or _BEGUN_ANEW
        else:
            try:
                stage, what = _ENTRIES.validate_json(match[2])
            except ValueError:
                reason = "damaged"
                continue
            if what not in (before := found.get(stage, ())):
                found[stage] = (*before, what)
    return found, reason


def _write(run: Path, uses: _Uses, *, is_complete: bool) -> None:
    lines = [] if is_complete else [_line(_INCOMPLETE)]
    lines += [_line([stage, what]) for stage, words in uses.items() for what in words]
    write_text(run / USES, b"".join(lines).decode())


def _line(entry: str | list[str]) -> bytes:
    """A line, which begins anew even after a cut one."""
    text = json.dumps(entry).encode()
    return b"\n%08x %s\n" % (zlib.crc32(text), text)
