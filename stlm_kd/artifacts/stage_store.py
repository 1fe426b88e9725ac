"""The stage store: intermediate results cached by key, completed atomically, and verified on reading.

A stage's folder is ``<kind>-<hash of its key>``. It is built as ``<folder>.partial``, from which an
interrupted build resumes, and renamed on completion, with the hashes of all its files. If several processes
need a stage, one builds it and the others wait. A build that ends before it writes a file leaves nothing. A
stage whose files do not have their hashes is made again, and kept aside as ``.<folder>.damaged``; later
ones get a number.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import (
    clear_unfinished,
    clear_unfinished_for,
    read_json,
    reading,
    remove,
    storage_as_error,
    write_json,
    writing,
    written_whole,
)
from stlm_kd.artifacts.hashing import first_change, hashes_of, linked, recorded_files, sealed, unsealed
from stlm_kd.artifacts.uses import add_use
from stlm_kd.distributed import on_main_process
from stlm_kd.lazy import filelock
from stlm_kd.notes import note

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Key = Mapping[str, Json]

FORMATS = {
    "tokenizer": 1,
    "model": 3,
    "adapted": 5,
    "eval": 8,
    "fine-tuned": 3,
    "cache": 1,
    "answers": 2,
    "renamed": 1,
}
"""The format version of each kind; incremented when the same key gives a different result."""

_RESULTS = {
    "tokenizer": "tokenizer.json", "model": "report.json", "adapted": "report.json", "eval": "result.json",
    "fine-tuned": "results.json", "cache": "manifest.json", "answers": "answers.json",
    "renamed": "model/config.json",
}  # fmt: skip
"""The file that each kind is made for: a record without it is damaged."""

STAGE = "stage.json"  # file with the kind, key and file hashes of a stage
_NO_RECORD = f"{STAGE}: gone or damaged"

LOCKS = ".locks"
PARTIAL = ".partial"
DAMAGED = ".damaged"

WEIGHTS = ".safetensors"
READ = {WEIGHTS, ".json", ".model", ".txt", ".tiktoken", ".jinja"}
"""Suffixes of the files of a model's folder that loading it reads, apart from code."""

_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a completed stage, or a copy of it, says of itself.

    Attributes:
        kind: The kind of stage.
        digest: Hash of its key; the stage's folder has the first 12 digits in its name.
        files: SHA-256 of each file, by path.
        what: What it was to the run that made it; "" from earlier versions.
    """

    kind: str
    digest: str
    files: Mapping[str, str]
    what: str = ""

    @classmethod
    def of(cls, folder: Path) -> StageRecord | None:
        """The record in a folder; None if there is none, or one that is damaged, such as without files.

        Those of earlier versions have no seal.

        Raises:
            MissingResourceError: It is there, but cannot be read.
        """
        try:
            with reading(folder / STAGE):
                found = unsealed(read_json(folder / STAGE, nan=True), is_required=False)
            kind, key, files = found["kind"], found["key"], recorded_files({**found["files"]})
            is_whole = _RESULTS[kind] in files
            return cls(kind, _digest(kind, key), files, str(found.get("what", ""))) if is_whole else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def change_of(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first file that does not have its hash, or that is new and would be loaded; None without any."""
    if found := first_change(folder, files):
        return found
    models = {Path(name).parent for name in files if Path(name).name in _MARKS}
    with reading(folder):
        beside = [path for model in sorted(models) for path in sorted((folder / model).iterdir())]
    names = (path.relative_to(folder).as_posix() for path in beside if _is_loaded(path.name))
    return next((f"{name}: new" for name in names if name not in {*files, STAGE}), None)


_MARKS = ("config.json", "tokenizer_config.json")
"""Files of a folder that is loaded as a model or tokenizer."""

_TEXTS = ("vocab.txt", "merges.txt")


def _is_loaded(name: str) -> bool:
    """Whether loading a model's folder would read a file; what file managers leave is hidden."""
    suffix = Path(name).suffix
    return suffix in READ and not name.startswith(".") and (suffix != ".txt" or name in _TEXTS)


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages in one folder. Without ``resume``, partial builds restart; ``run`` is what uses them."""

    root: Path
    resume: bool = True
    run: Path | None = None

    def path(self, kind: str, key: Key) -> Path:
        """The folder of the completed stage."""
        return self.root / f"{kind}-{_digest(kind, key)[:12]}"

    def make(
        self, kind: str, key: Key, build: Callable[[Path], None], *, what: str = "", together: bool = False
    ) -> Path:
        """Return the stage's folder, building it if it is missing or damaged.

        ``key`` is everything that determines the result. ``build`` writes to a folder, which may contain the
        files of an interrupted build; with ``together``, all processes of the command call this and build.
        ``what`` says what the stage is to the run.

        Raises:
            MissingResourceError: The folder is not writable.
        """
        folder = self.path(kind, key)
        first: Callable[[Callable[[], bool | None]], bool | None]
        first = on_main_process if together else lambda work: work()
        with storage_as_error(folder), ExitStack() as held:
            if first(lambda: self._begin(folder, kind, what, held)):
                build(_partial(folder))
                first(lambda: self._complete(folder, kind, key, what or kind))
        return folder

    def use(self, folder: Path, what: str) -> None:
        """Record what a stage is to the run."""
        if self.run is not None:
            add_use(self.run, folder.name, what)

    def holds(self, folder: Path, kind: str, key: Key) -> bool:
        """Whether a folder is this stage or a copy; a changed one is put aside, with a note."""
        found = StageRecord.of(folder)
        if found is None:
            _put_aside(folder, kind, None if _is_unfinished(folder) else _NO_RECORD)
            return False
        if found.digest != _digest(kind, key):
            return False
        return not _put_aside(folder, kind, change_of(folder, found.files))

    def has(self, kind: str, key: Key) -> bool:
        """Whether a stage is there and undamaged."""
        return _is_whole(self.path(kind, key))

    def _begin(self, folder: Path, kind: str, what: str, held: ExitStack) -> bool:
        """Whether the stage has to be built; if so, locks it until ``held`` ends."""
        self.use(folder, what or kind)
        if _is_whole(folder):
            _drop_checkpoints(folder)
            return False
        locks = self.root / LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        with doing(f"waiting for another command to build {folder}", pace="waits"):
            held.enter_context(filelock.FileLock(locks / folder.name))
        if _is_there(folder):
            if (damage := _damage(folder)) is None:
                return False
            _put_aside(folder, kind, damage)
        held.callback(_drop_if_empty, _partial(folder), locks / folder.name)
        clear_unfinished_for(_partial(folder))
        if not self.resume:
            shutil.rmtree(_partial(folder), ignore_errors=True)
        _partial(folder).mkdir(parents=True, exist_ok=True)
        clear_unfinished(_partial(folder))
        return True

    def _complete(self, folder: Path, kind: str, key: Key, what: str) -> None:
        partial = _partial(folder)
        content = {"kind": kind, "format": FORMATS[kind], "key": dict(key), "what": what}
        write_json(partial / STAGE, sealed({**content, "files": _hashes(partial)}))
        partial.rename(folder)
        _drop_checkpoints(folder)


def _is_whole(folder: Path) -> bool:
    return _is_there(folder) and _damage(folder) is None


def _is_there(path: Path) -> bool:
    try:
        with reading(path):
            path.lstat()
    except OSError:
        return False
    return True


def _damage(folder: Path) -> str | None:
    """Why a folder is not the stage that its name says; None if it is."""
    found = StageRecord.of(folder)
    if found is None:
        return _NO_RECORD
    if folder.name != f"{found.kind}-{found.digest[:12]}":
        return f"{STAGE}: of another stage"
    return change_of(folder, found.files)


def _is_unfinished(folder: Path) -> bool:
    """Whether a folder without a record is that of a training that has not ended, or is not there."""
    if not folder.is_dir() or os.path.lexists(folder / STAGE):
        return not os.path.lexists(folder)
    return (folder / _CHECKPOINTS).is_dir() or not (folder / "model").is_dir()


def _put_aside(folder: Path, kind: str, damage: str | None) -> bool:
    """Rename a damaged folder, with a note; return whether it was damaged."""
    if damage is None:
        return False
    first = folder.with_name(f".{folder.name}{DAMAGED}")
    later = (first.with_name(f"{first.name}.{number}") for number in count(2))
    with writing(folder):
        aside = next(path for path in chain([first], later) if not os.path.lexists(path))
        folder.rename(aside)
    note(
        f"{folder}/{damage} since this {kind} was completed; it is made again, and the folder as it was is "
        f"{aside.name} there"
    )
    return True


def _digest(kind: str, key: Key) -> str:
    text = json.dumps([kind, FORMATS[kind], key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{PARTIAL}")


def _drop_if_empty(partial: Path, lock: Path) -> None:
    """Remove a build that ended before it wrote a file."""
    if partial.is_dir() and not any(path.is_file() for path in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)
        remove(lock)


def _drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a completed stage; earlier, an interrupted deletion would damage them."""
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / STAGE)
    return hashes_of(folder, (path for path in files if path.relative_to(folder).parts[0] != _CHECKPOINTS))


def copy_folder(source: Path, target: Path) -> None:
    """Replace a folder by a copy of a stage without checkpoints; weights become read-only hard links."""
    left = shutil.ignore_patterns(_CHECKPOINTS)
    weights = [path.relative_to(source) for path in source.rglob(f"*{WEIGHTS}")]
    links = {source / path: target / path for path in weights if _CHECKPOINTS not in path.parts}
    with linked(links), written_whole(target) as unfinished:  # also a copy that is replaced is a link
        shutil.copytree(source, unfinished, copy_function=_copy, ignore=left)


def _copy(source: str, target: str) -> None:
    """Link weights, which are large and are replaced rather than modified; copy everything else."""
    if source.endswith(WEIGHTS):
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            Path(target).chmod(0o444)
            return
    shutil.copy2(source, target)
