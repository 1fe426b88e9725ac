"""The commits of a command: each outside name is resolved once, and everything is loaded by that commit.

A command runs within ``using(Pins(...))``; loaders call ``current().resolve(name)``. The processes of a
command get its pins as text (``as_json``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import RLock
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.record import Pinned, TeacherPrecision
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.notes import note
from stlm_kd.sharing.failures import HubUnreachable
from stlm_kd.sharing.gguf import dequantised, gguf_file
from stlm_kd.sharing.hub import (
    RepoInfo,
    ask,
    info,
    info_from_cache,
    is_offline,
    snapshots,
    stored,
)
from stlm_kd.sharing.names import HubName, Kind, expanded, hub_name_or_path
from stlm_kd.sharing.snapshot import model_folder

Moved = Literal["keep", "update", "frozen"]
"""Earlier pins are kept, with a note on names that have moved; replaced; or kept without asking the Hub."""

_Key = tuple[Kind, str, str | None]


@dataclass(frozen=True, slots=True)
class _Saved:
    """Pins as text."""

    pins: tuple[RepoInfo, ...]
    benchmarks: tuple[RepoInfo, ...]
    lock: str
    teacher_precision: TeacherPrecision | None = None


_SAVED: TypeAdapter[_Saved] = TypeAdapter(_Saved)


class Pins:
    """What one command means by what its recipe leaves open: commits of names, precision of teachers."""

    def __init__(
        self,
        earlier: Iterable[Pinned] = (),
        *,
        moved: Moved = "keep",
        lock: str = "",
        benchmarks: Iterable[RepoInfo] = (),
        outer: Pins | None = None,
        teacher_precision: TeacherPrecision | None = None,
    ) -> None:
        """Start from earlier pins, or from none.

        Args:
            earlier: The pins of a lock, or of the run that is repeated.
            moved: What happens to them if their names mean other commits by now.
            lock: The lock that they are of, in messages. Names that it lacks are refused, and files must have
                the hashes that it states.
            benchmarks: Suites' data sets in it, whose commits replace the default ones.
            outer: Pins of the same command; the Hub is asked once for both.
            teacher_precision: Of the teachers for which the recipe leaves it open; None: the device decides.
        """
        whole = (one if isinstance(one, RepoInfo) else RepoInfo(**asdict(one)) for one in earlier)
        self._benchmarks = {one.id: one for one in benchmarks}
        self._earlier = {_key(one): one for one in whole}
        self._earlier |= {_commit_key(one): one for one in self._benchmarks.values()}
        self._moved = moved
        self.lock = lock
        self.teacher_precision = teacher_precision
        self._listed: dict[_Key, RepoInfo] = {}
        self._resolved: dict[_Key, RepoInfo] = {}
        self._at_commit = {_commit_key(one): one for one in self._earlier.values()}
        self._answers: dict[_Key, RepoInfo] = {} if outer is None else outer._answers
        self._answered: set[_Key] = set() if outer is None else outer._answered
        self.failure: str = "" if outer is None else outer.failure
        """Why the Hub is no longer asked."""
        self._lock = RLock()

    def resolve(self, name: HubName) -> RepoInfo:
        """The repository at its commit; the first call for a name asks the Hub, if it is needed and answers.

        Raises:
            MissingResourceError: As ``stlm_kd.sharing.hub.info``; or without the Hub, the revision was never
                fetched.
        """
        key = _name_key(name)
        with self._lock:
            if key in self._resolved:
                return self._resolved[key]
            if key in self._at_commit and key not in self._earlier:  # ``RepoInfo.pinned``
                return self._at_commit[key]
            found = self._resolved[key] = self._find(name, self._earlier.get(key))
            self._at_commit.setdefault(_commit_key(found), found)
            return found

    def benchmark(self, id: str) -> str | None:
        """The commit of a suite's data set in the lock; None if it has none."""
        return self._benchmarks[id].commit if id in self._benchmarks else None

    def require_answer(self, one: RepoInfo) -> None:
        """Ask the Hub for a repository unless it has answered: what is known of a commit shows no access.

        Raises:
            MissingResourceError: As ``stlm_kd.sharing.hub.ask``.
        """
        if _commit_key(one) not in self._answered:
            ask(one.pinned)
            self._answered.add(_commit_key(one))

    def records(self, *, earlier: bool = False) -> list[Pinned]:
        """What was resolved, sorted, for a run's record; ``earlier``: also earlier pins not used so far."""
        with self._lock:
            found = (self._earlier | self._resolved) if earlier else self._resolved
            return [found[key].record for key in sorted(found, key=str)]

    def as_json(self) -> str:
        """The pins as text, from which ``from_json`` makes them in another process."""
        with self._lock:
            suites = tuple(self._benchmarks.values())
            known = self._earlier | self._resolved
            for one in suites:
                known.pop(_commit_key(one))
            saved = _Saved(tuple(known.values()), suites, self.lock, self.teacher_precision)
            return json.dumps(asdict(saved))

    def listed(self, one: RepoInfo) -> RepoInfo:
        """A repository with the files that the Hub lists now, if these are pins of a lock; else as it is."""
        return self._listed.get(_commit_key(one), one)

    def _locked(self, name: HubName, locked: RepoInfo | None) -> RepoInfo:
        """The repository as locked; a line says if its name has moved, which the Hub is asked unless frozen.

        Raises:
            MissingResourceError: Not in the lock; or the commit is neither on the Hub nor in the cache.
        """
        if locked is None:
            raise MissingResourceError(
                f"{name}: not in {self.lock}; lock the recipe again: stlm-kd recipe lock"
            )
        if self._moved == "frozen":
            return self._with_files(locked)
        found: RepoInfo | None = None
        with suppress(MissingResourceError):
            found = self._ask(name)
        if self.failure:
            return self._with_files(locked)
        if found is None or found.commit != locked.commit:
            now = "is gone from the Hub" if found is None else f"means {found.commit[:7]} by now"
            note(f"{name} {now}; {locked.commit[:7]} is used, as locked: stlm-kd recipe lock follows")
            if (snapshots(locked.pinned) / locked.commit).is_dir():
                return self._with_files(locked)
            try:
                found = ask(locked.pinned)
            except HubUnreachable:
                return self._with_files(locked)
            except MissingResourceError as error:
                raise MissingResourceError(f"lost, since it is not in the cache either: {error}") from error
        self._listed[_commit_key(locked)] = found
        sizes = {path: file.size for path, file in (found.files or {}).items()}
        files = {path: replace(file, size=sizes.get(path, 0)) for path, file in (locked.files or {}).items()}
        return replace(locked, files=files or found.files, gated=found.gated)

    def _find(self, name: HubName, earlier: RepoInfo | None) -> RepoInfo:
        if self.lock:
            return self._locked(name, earlier)
        if earlier is not None and (self._moved == "frozen" or name.is_commit):
            return self._with_files(earlier)
        try:
            found = self._ask(name)
        except MissingResourceError as error:
            if earlier is None:
                raise
            if not isinstance(error, HubUnreachable):
                note(f"{error}; {earlier.commit[:7]} is used, as before")
            return self._with_files(earlier)
        if earlier is None or earlier.commit == found.commit:
            return found
        moved = f"{name} has moved on ({earlier.commit[:7]} → {found.commit[:7]})"
        if self._moved == "update":
            note(f"{moved}, and is followed")
            return found
        note(f"{moved}; {earlier.commit[:7]} is used, as before: --update follows")
        return self._with_files(earlier)

    def _with_files(self, earlier: RepoInfo) -> RepoInfo:
        """An earlier pin with its list of files, which a run's record lacks."""
        if earlier.files is not None:
            return earlier
        try:
            return replace(self._ask(earlier.pinned), asked=earlier.asked)
        except MissingResourceError:
            return earlier

    def _ask(self, name: HubName) -> RepoInfo:
        """From the Hub, or from the cache once the Hub has failed, which is tried and told once."""
        if (known := self._answers.get(_name_key(name))) is not None:
            return known
        if self.failure and not is_offline():
            return info_from_cache(name, HubUnreachable(f"{name}: {self.failure}"))
        try:
            is_known = stored(name) is not None
            found = self._answers[_name_key(name)] = info(name)
            if not is_known:
                self._answered.add(_commit_key(found))
            return found
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
        saved = _SAVED.validate_json(text)
        return Pins(
            saved.pins,
            moved=moved,
            lock=saved.lock,
            benchmarks=saved.benchmarks,
            teacher_precision=saved.teacher_precision,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise CheckpointError(
            f"{place}: not a record of pins ({where}: {fault['msg']}); repeat the command that wrote it"
        ) from error


_active: Pins | None = None
"""Not a context variable: threads of the command must see it too."""

_of_process: Pins | None = None
"""Outside of all commands, as in a program that loads a model."""


def current() -> Pins:
    """The pins of this command; without ``using``, those of the process."""
    global _of_process
    if _active is None and _of_process is None:
        _of_process = Pins()
    found = _active or _of_process
    assert found is not None
    return found


def of_command() -> Pins | None:
    """The pins of the command within which another one begins; None if there is none."""
    return _active


def local_folder(text: str, *, weights: bool = True, code: bool = False) -> Path:
    """The folder of a model or tokenizer: of a path, or the fetched commit of a name on the Hub.

    A GGUF file, or a folder with one, means the folder of its dequantised model.

    Args:
        text: A path, with ``~`` and ``$VARIABLES``, or a name as in ``stlm_kd.sharing.names``.
        weights: Whether the weights are needed.
        code: Whether the model's own code may be fetched.

    Raises:
        MissingResourceError: As ``Pins.resolve`` and ``stlm_kd.sharing.snapshot.model_folder``.
        ModelError: As ``stlm_kd.sharing.snapshot.model_folder`` and ``stlm_kd.sharing.gguf.dequantised``.
        CheckpointError: A model of a stage or run that changed since it was completed.
    """
    name = hub_name_or_path(text)
    if name is None:
        folder = expanded(text)
        refuse_changed(folder)
        file = gguf_file(text)
        return folder if file is None else dequantised(file)
    pins = current()
    return model_folder(pins.resolve(name), weights=weights, code=code, offline=bool(pins.failure))


def use(pins: Pins) -> None:
    """Use these pins from now on: those of a command line, or in a worker of a command."""
    global _active
    _active = pins


@contextmanager
def using(pins: Pins) -> Iterator[Pins]:
    """Use these pins until the end of the block."""
    global _active
    before, _active = _active, pins
    try:
        yield pins
    finally:
        _active = before


def _key(one: RepoInfo) -> _Key:
    return _name_key(HubName(one.kind, one.id, one.asked))


def _name_key(name: HubName) -> _Key:
    return name.kind, name.id, None if name.revision == "main" else name.revision


def _commit_key(one: RepoInfo) -> _Key:
    return one.kind, one.id, one.commit
