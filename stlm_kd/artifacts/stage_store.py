"""The stage store: intermediate results cached by key, completed atomically, and verified on reading.

A stage's folder is ``<kind>-<hash of its key>``. It is built as ``<folder>.partial``, from which an
interrupted build resumes, and renamed on completion, with the hashes of all its files. If several processes
need a stage, one builds it and the others wait. A build that ends before it writes a file leaves nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from stlm_kd.artifacts.atomic import (
    clear_unfinished,
    clear_unfinished_for,
    full_disk_as_error,
    remove,
    write_json,
    written_whole,
)
from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError

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

STAGE = "stage.json"  # file with the kind, key and file hashes of a stage

WEIGHTS = ".safetensors"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What a completed stage, or a copy of it, says of itself.

    Attributes:
        kind: The kind of stage.
        digest: Hash of its key; the stage's folder has the first 12 digits in its name.
        files: SHA-256 of each file, by path.
    """

    kind: str
    digest: str
    files: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> StageRecord | None:
        """The record in a folder; None if it is not that of a stage."""
        try:
            found = json.loads((folder / STAGE).read_text(encoding="utf-8"))
            kind, key, files = found["kind"], found["key"], dict(found.get("files", {}))
            return cls(kind, _digest(kind, key), files)
        except (OSError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages in one folder. Without ``resume``, partial builds restart."""

    root: Path
    resume: bool = True

    def path(self, kind: str, key: Key) -> Path:
        """The folder of the completed stage."""
        return self.root / f"{kind}-{_digest(kind, key)[:12]}"

    def make(self, kind: str, key: Key, build: Callable[[Path], None], *, together: bool = False) -> Path:
        """Return the stage's folder, building it if necessary.

        ``key`` is everything that determines the result. ``build`` writes to a folder, which may contain the
        files of an interrupted build; with ``together``, all processes of the command call this and build.

        Raises:
            CheckpointError: The folder is not this stage, or was changed since its completion.
        """
        folder = self.path(kind, key)
        first: Callable[[Callable[[], bool | None]], bool | None]
        first = on_main_process if together else lambda work: work()
        with full_disk_as_error(folder), ExitStack() as held:
            if first(lambda: self._begin(folder, held)):
                build(_partial(folder))
                first(lambda: self._complete(folder, kind, key))
        first(lambda: self._verify(folder, kind, key))
        return folder

    def holds(self, folder: Path, kind: str, key: Key) -> bool:
        """Whether a folder is this stage or a copy, by its metadata; CheckpointError if a file changed."""
        found = StageRecord.of(folder)
        if found is None or found.digest != _digest(kind, key):
            return False
        _check_files(folder, kind, found.files)
        return True

    def _begin(self, folder: Path, held: ExitStack) -> bool:
        """Whether the stage has to be built; if so, locks it until ``held`` ends."""
        if folder.is_dir():
            _drop_checkpoints(folder)
            return False
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        held.enter_context(FileLock(locks / folder.name))
        if folder.is_dir():
            return False
        held.callback(_drop_if_empty, _partial(folder), locks / folder.name)
        clear_unfinished_for(_partial(folder))
        if not self.resume:
            shutil.rmtree(_partial(folder), ignore_errors=True)
        _partial(folder).mkdir(parents=True, exist_ok=True)
        clear_unfinished(_partial(folder))
        return True

    def _complete(self, folder: Path, kind: str, key: Key) -> None:
        partial = _partial(folder)
        content = {"kind": kind, "format": FORMATS[kind], "key": dict(key), "files": _hashes(partial)}
        write_json(partial / STAGE, content)
        partial.rename(folder)
        _drop_checkpoints(folder)

    def _verify(self, folder: Path, kind: str, key: Key) -> None:
        if not self.holds(folder, kind, key):
            raise CheckpointError(
                f"{folder}: not the {kind} that its name says; delete the folder to rebuild it"
            )


def _digest(kind: str, key: Key) -> str:
    text = json.dumps([kind, FORMATS[kind], key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _drop_if_empty(partial: Path, lock: Path) -> None:
    """Remove a build that ended before it wrote a file."""
    if partial.is_dir() and not any(path.is_file() for path in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)
        remove(lock)


def _drop_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a completed stage; earlier, an interrupted deletion would damage them."""
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / STAGE)
    names = {path.relative_to(folder): path for path in files}
    return {
        name.as_posix(): known_sha256(path) for name, path in names.items() if name.parts[0] != _CHECKPOINTS
    }


def _check_files(folder: Path, kind: str, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or known_sha256(path) != digest:
            what = "changed" if path.is_file() else "gone"
            raise CheckpointError(
                f"{path}: {what} since this {kind} was completed; put the file back, or delete {folder} to "
                "rebuild it (to work with changed models, copy the folder to another place)"
            )


def copy_folder(source: Path, target: Path) -> None:
    """Replace a folder by a copy of a stage without checkpoints; weights become read-only hard links."""
    left = shutil.ignore_patterns(_CHECKPOINTS)
    with written_whole(target) as unfinished:
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
