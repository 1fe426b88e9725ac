"""Results that are found again by what made them, are never half there, and are not changed unnoticed.

A stage's folder is ``<kind>-<hash of its key>``. It is built as ``<folder>.partial``, where an interrupted
build finds its checkpoints again, and gets its name when it is whole, with the hashes of all its files. Of
several processes that want the same stage one builds it, and the others wait. Of a build that ended before
it wrote a file nothing is left.
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
    write_json,
    written_whole,
)
from stlm_kd.artifacts.hashing import file_hash
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
"""The version of each kind's content: raised when the same key has to give another result."""

STAGE = "stage.json"
"""Says of what kind a folder is, of which key, and which files it was completed with."""

WEIGHTS = ".safetensors"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True)
class Stages:
    """All stages below one folder. With ``resume`` off, partial builds are begun anew."""

    root: Path
    resume: bool = True

    def path(self, kind: str, key: Key) -> Path:
        """Where the stage lies once it is made."""
        return self.root / f"{kind}-{self._digest(kind, key)[:12]}"

    def make(self, kind: str, key: Key, build: Callable[[Path], None], *, together: bool = False) -> Path:
        """The stage's folder; ``build`` fills it unless it is there.

        Args:
            kind: One of ``FORMATS``.
            key: Everything that decides the result.
            build: Writes into the folder that it is given, and may find its own earlier files there.
            together: All processes of the command call this, and build what they build together.

        Raises:
            CheckpointError: What lies there is not this stage, or was changed since it was completed.
        """
        folder = self.path(kind, key)
        first: Callable[[Callable[[], bool]], bool] = on_main_process if together else _here
        with full_disk_as_error(folder), ExitStack() as held:
            if first(lambda: self._begin(folder, held)):
                build(_partial(folder))
                first(lambda: self._complete(folder, kind, key))
        first(lambda: self._verify(folder, kind, key))
        return folder

    def holds(self, folder: Path, kind: str, key: Key) -> bool:
        """Whether a folder is this stage, or a copy of it, by its own word.

        Raises:
            CheckpointError: It is, but a file is no longer what it was.
        """
        try:
            found = json.loads((folder / STAGE).read_text(encoding="utf-8"))
            same = self._digest(found["kind"], found["key"]) == self._digest(kind, key)
            files = dict(found.get("files", {}))
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if same:
            _check_files(folder, kind, files)
        return same

    def _begin(self, folder: Path, held: ExitStack) -> bool:
        """Whether the stage has to be built; its lock is held then until ``held`` ends."""
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

    def _complete(self, folder: Path, kind: str, key: Key) -> bool:
        partial = _partial(folder)
        content = {"kind": kind, "format": FORMATS[kind], "key": dict(key), "files": _hashes(partial)}
        write_json(partial / STAGE, content)
        partial.rename(folder)
        _drop_checkpoints(folder)
        return True

    def _verify(self, folder: Path, kind: str, key: Key) -> bool:
        if not self.holds(folder, kind, key):
            raise CheckpointError(
                f"{folder}: not the {kind} that its name says; delete the folder to make it anew"
            )
        return True

    @staticmethod
    def _digest(kind: str, key: Key) -> str:
        text = json.dumps([kind, FORMATS[kind], key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.partial")


def _drop_if_empty(partial: Path, lock: Path) -> None:
    """Leave nothing of a build that ended before it wrote a file."""
    if partial.is_dir() and not any(path.is_file() for path in partial.rglob("*")):
        shutil.rmtree(partial, ignore_errors=True)
        lock.unlink(missing_ok=True)


def _drop_checkpoints(folder: Path) -> None:
    """Once the stage is whole: until then, half of them deleted would be damaged ones to whoever resumes."""
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


def _here(work: Callable[[], bool]) -> bool:
    return work()


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of each file by its place in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / STAGE)
    names = {path.relative_to(folder): path for path in files}
    return {name.as_posix(): file_hash(path) for name, path in names.items() if name.parts[0] != _CHECKPOINTS}


def _check_files(folder: Path, kind: str, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or file_hash(path) != digest:
            what = "changed" if path.is_file() else "gone"
            raise CheckpointError(
                f"{path}: {what} since this {kind} was completed; put the file back, or delete {folder} to "
                "make it anew (to work with changed models, copy the folder to another place)"
            )


def copy_folder(source: Path, target: Path) -> None:
    """The same files under another folder, which appears whole; weights are read-only links where can be.

    What was in ``target`` is gone, and checkpoints stay behind.
    """
    left = shutil.ignore_patterns(_CHECKPOINTS)
    with written_whole(target) as unfinished:
        shutil.copytree(source, unfinished, copy_function=_copy, ignore=left)


def _copy(source: str, target: str) -> None:
    """Weights are large, and programs replace them rather than write into them; everything else is copied."""
    if source.endswith(WEIGHTS):
        try:
            os.link(source, target)
        except OSError:
            pass
        else:
            Path(target).chmod(0o444)
            return
    shutil.copy2(source, target)
