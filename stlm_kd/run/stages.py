"""Results that are found again by what made them, and are never half there.

A stage's folder is ``<kind>-<hash of its key>``. It is built as ``<folder>.partial``, where an interrupted
build finds its checkpoints again, and gets its name when it is whole. Of several processes that want the same
stage one builds it, and the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from stlm_kd.data.files import expanded
from stlm_kd.errors import CheckpointError
from stlm_kd.models.load import load_config
from stlm_kd.run.record import write_json

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Key = Mapping[str, Json]

FORMATS = {"tokenizer": 1, "model": 1, "adapted": 1, "eval": 1}
"""The version of each kind's content: raised when the same key has to give another result."""

STAGE = "stage.json"
"""Says of what kind a folder is, and of which key."""


@dataclass(frozen=True, slots=True)
class Stages:
    """All stages below one folder. With ``resume`` off, partial builds are begun anew."""

    root: Path
    resume: bool = True

    def path(self, kind: str, key: Key) -> Path:
        """Where the stage lies once it is made."""
        return self.root / f"{kind}-{self._digest(kind, key)[:12]}"

    def make(self, kind: str, key: Key, build: Callable[[Path], None]) -> Path:
        """The stage's folder; ``build`` fills it unless it is there.

        Args:
            kind: One of ``FORMATS``.
            key: Everything that decides the result.
            build: Writes into the folder that it is given, and may find its own earlier files there.
        """
        folder = self.path(kind, key)
        if not folder.is_dir():
            locks = self.root / ".locks"
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / folder.name):
                if not folder.is_dir():
                    self._build(folder, kind, key, build)
        if not self.holds(folder, kind, key):
            raise CheckpointError(
                f"{folder}: not the {kind} that its name says; delete the folder to make it anew"
            )
        return folder

    def holds(self, folder: Path, kind: str, key: Key) -> bool:
        """Whether a folder is this stage, or a copy of it, by its own word."""
        try:
            found = json.loads((folder / STAGE).read_text(encoding="utf-8"))
            return self._digest(found["kind"], found["key"]) == self._digest(kind, key)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _build(self, folder: Path, kind: str, key: Key, build: Callable[[Path], None]) -> None:
        partial = folder.with_name(f"{folder.name}.partial")
        if not self.resume:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        build(partial)
        shutil.rmtree(partial / "checkpoints", ignore_errors=True)
        write_json(partial / STAGE, {"kind": kind, "format": FORMATS[kind], "key": dict(key)})
        partial.rename(folder)

    @staticmethod
    def _digest(kind: str, key: Key) -> str:
        text = json.dumps([kind, FORMATS[kind], key], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def link_folder(source: Path, target: Path) -> None:
    """The same files under another folder, which appears whole; without a second copy where links can be.

    What was in ``target`` is gone, and checkpoints stay behind.
    """
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    left = shutil.ignore_patterns("checkpoints")
    shutil.copytree(source, unfinished, copy_function=_link_or_copy, ignore=left)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def model_identity(name: str, *, trust_remote_code: bool = False) -> str:
    """What a model is: a hash of a folder's configuration, weights and tokenizer, or Hub id and commit."""
    folder = expanded(name)
    if not folder.is_dir():
        commit = getattr(load_config(name, trust_remote_code=trust_remote_code), "_commit_hash", None)
        return f"{name}@{commit}"
    files = sorted(
        path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".model", ".txt"}
    )
    text = "\n".join(f"{path.name} {file_hash(path)}" for path in files if path.name != STAGE)
    return hashlib.sha256(text.encode()).hexdigest()
