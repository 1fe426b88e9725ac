"""The commits of a command: each outside name is resolved once, and everything is loaded by that commit.

A command runs within ``using(Pins(...))``; loaders call ``current().resolve(name)``. A process that a command
starts gets its pins through a file that ``STLM_KD_PINS`` names (``variables``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from threading import RLock
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import write_text
from stlm_kd.errors import CheckpointError, DataError, MissingResourceError
from stlm_kd.notes import note
from stlm_kd.sharing.failures import HubUnreachable
from stlm_kd.sharing.hub import RepoInfo, info, info_from_cache, is_offline
from stlm_kd.sharing.names import HubName, Kind, hub_name, hub_name_or_path
from stlm_kd.sharing.snapshot import model_folder

VARIABLE = "STLM_KD_PINS"
MIRROR = "mirror.json"
"""The file by which a local copy of a data set says what it is a copy of: ``{"id": …, "commit": …}``."""

Moved = Literal["keep", "update", "frozen"]
"""Earlier pins are kept, with a note on names that have moved; replaced; or kept without asking the Hub."""

_Key = tuple[Kind, str, str | None]
_RECORDS: TypeAdapter[list[RepoInfo]] = TypeAdapter(list[RepoInfo])
_MIRROR: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])


class Pins:
    """Outside names and the commits that they mean in one command."""

    def __init__(self, earlier: Iterable[RepoInfo] = (), *, moved: Moved = "keep") -> None:
        """Start from earlier pins, or from none.

        Args:
            earlier: The pins of a lock, or of the run that is repeated.
            moved: What happens to them if their names mean other commits by now.
        """
        self._earlier = {_key(one): one for one in earlier}
        self._moved = moved
        self._resolved: dict[_Key, RepoInfo] = {}
        self._at_commit = {_commit_key(one): one for one in self._earlier.values()}
        self.failure = ""
        """Why the Hub is no longer asked."""
        self._lock = RLock()

    def resolve(self, name: HubName) -> RepoInfo:
        """The repository at its commit; the first call for a name asks the Hub, if it is needed and answers.

        Raises:
            MissingResourceError: As ``stlm_kd.sharing.hub.info``; or without the Hub, the revision was never
                fetched.
        """
        key = name.kind, name.id, None if name.revision == "main" else name.revision
        with self._lock:
            if key in self._resolved:
                return self._resolved[key]
            if key in self._at_commit and key not in self._earlier:  # a name that ``pin`` gave
                return self._at_commit[key]
            found = self._resolved[key] = self._find(name, self._earlier.get(key))
            self._at_commit.setdefault(_commit_key(found), found)
            return found

    def pin(self, text: str, kind: Kind = "model") -> str:
        """``id@commit`` of a name on the Hub, which ``resolve`` knows from then on; a path unchanged."""
        name = hub_name_or_path(text, kind)
        return text if name is None else str(self.resolve(name).pinned)

    def records(self) -> list[RepoInfo]:
        """What was resolved, sorted, for a run's record and its lock."""
        with self._lock:
            return [self._resolved[key] for key in sorted(self._resolved, key=str)]

    def as_json(self) -> str:
        """The pins as text, from which ``from_json`` makes them in another process."""
        with self._lock:
            return json.dumps([asdict(one) for one in (self._earlier | self._resolved).values()])

    def _find(self, name: HubName, earlier: RepoInfo | None) -> RepoInfo:
        if earlier is not None and (self._moved == "frozen" or name.is_commit):
            return earlier
        try:
            found = self._ask(name)
        except MissingResourceError as error:
            if earlier is None:
                raise
            if not isinstance(error, HubUnreachable):
                note(f"{error}; {earlier.commit[:7]} is used, as before")
            return earlier
        if earlier is None or earlier.commit == found.commit:
            return found
        moved = f"{name} has moved on ({earlier.commit[:7]} → {found.commit[:7]})"
        if self._moved == "update":
            note(f"{moved}, and is followed")
            return found
        note(f"{moved}; {earlier.commit[:7]} is used, as before: --update follows")
        return earlier

    def _ask(self, name: HubName) -> RepoInfo:
        """From the Hub, or from the cache once the Hub has failed, which is tried and told once."""
        if self.failure:
            return info_from_cache(name, HubUnreachable(f"{name}: {self.failure}"))
        try:
            return info(name)
        except HubUnreachable as error:
            self.failure = str(error).removeprefix(f"{name}: ")
            found = info_from_cache(name, error)
            if not is_offline():
                note(f"{self.failure}; until then, names mean what they meant when they were fetched")
            return found


def from_json(text: str | bytes, place: str, *, moved: Moved = "frozen") -> Pins:
    """Pins that ``Pins.as_json`` wrote.

    Raises:
        CheckpointError: The text is damaged.
    """
    try:
        return Pins(_RECORDS.validate_json(text), moved=moved)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(
            f"{place}: not a record of pins ({where}: {fault['msg']}); repeat the command that wrote it"
        ) from error


_active: Pins | None = None
"""Not a context variable: threads of the command must see it too."""


def current() -> Pins:
    """The pins of this command; without ``using``, those of the process, or those that it was started with.

    Raises:
        CheckpointError: ``STLM_KD_PINS`` names a damaged file.
        MissingResourceError: It names none.
    """
    global _active
    if _active is None:
        file = os.environ.get(VARIABLE)
        _active = Pins() if file is None else _read(Path(file))
    return _active


def local_folder(text: str, *, weights: bool = True, code: bool = False) -> Path:
    """The folder of a model or tokenizer: a path as it is, or the fetched commit of a name on the Hub.

    Args:
        text: A path, or a name as in ``stlm_kd.sharing.names``.
        weights: Whether the weights are needed.
        code: Whether the model's own code may be fetched.

    Raises:
        MissingResourceError: As ``Pins.resolve`` and ``stlm_kd.sharing.snapshot.model_folder``.
        ModelError: As ``stlm_kd.sharing.snapshot.model_folder``.
    """
    name = hub_name_or_path(text)
    if name is None:
        return Path(text)
    pins = current()
    return model_folder(pins.resolve(name), weights=weights, code=code, offline=bool(pins.failure))


@contextmanager
def using(pins: Pins) -> Iterator[Pins]:
    """Use these pins until the end of the block."""
    global _active
    before, _active = _active, pins
    try:
        yield pins
    finally:
        _active = before


def variables(pins: Pins, file: Path) -> dict[str, str]:
    """Write pins to a file; return the environment variables by which a new process uses them.

    Raises:
        OSError: The file cannot be written.
    """
    write_text(file, pins.as_json())
    return {VARIABLE: str(file)}


def _read(file: Path) -> Pins:
    try:
        return from_json(file.read_bytes(), str(file))
    except OSError as error:
        raise MissingResourceError(
            f"{VARIABLE}: {file} cannot be read ({error.strerror}); unset it"
        ) from error


def mirror_of(folder: Path) -> HubName | None:
    """The data set and commit of which a folder is a copy, by its ``mirror.json``; None without that file.

    Raises:
        DataError: The file is damaged, or names no commit.
    """
    file = folder / MIRROR
    if not file.is_file():
        return None
    expected = '{"id": "org/name", "commit": "<40 hexadecimal digits>"}'
    try:
        told = _MIRROR.validate_json(file.read_bytes())
        name = hub_name(told["id"], "dataset", revision=told["commit"])
    except (OSError, ValidationError, KeyError, MissingResourceError) as error:
        raise DataError(f"{file}: cannot be used; expected {expected}, or no such file") from error
    if not name.is_commit:
        raise DataError(f"{file}: commit {name.revision!r} found; expected {expected}")
    return name


def _key(one: RepoInfo) -> _Key:
    return one.kind, one.id, None if one.asked == "main" else one.asked


def _commit_key(one: RepoInfo) -> _Key:
    return one.kind, one.id, one.commit
