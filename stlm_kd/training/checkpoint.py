"""Checkpoints on disk: written atomically, verified on reading, without pickle.

::

    checkpoints/step-00000300/
    ├── model.safetensors        trained parameters and persistent buffers
    ├── optimizer.safetensors    the optimizer's state by parameter name
    ├── state.json               TrainingState
    └── checksums.json           SHA-256 of the three

Folders are written under a temporary name, flushed and renamed. The newest are kept, and the best of each.

The tensors are gathered from all processes, not sharded, so that any engine and number of processes can go
on: what is trained is a student of some 150M parameters at most, 1.8 GB with AdamW's averages, or an adapted
teacher's embedding and head. They are checked against the module: a partitioned one may give empty tensors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stlm_kd.activity import advanced
from stlm_kd.artifacts.atomic import read_json, reading, remedy, remove
from stlm_kd.artifacts.hashing import sha256
from stlm_kd.errors import CheckpointError
from stlm_kd.training.optimizer import shape_of, trainable_parameters

FORMAT = 2
"""2: with ``keep="best"``, the initial weights are among the candidates."""
START_AFRESH = "start afresh without resuming"
_PREFIX = "step-"
_CHECKSUMS = "checksums.json"
_STATE = "state.json"
_FILES = ("model.safetensors", "optimizer.safetensors", _STATE)


@dataclass(frozen=True, slots=True)
class Validation:
    """The validation losses after ``step`` optimizer steps, each per valid token."""

    step: int
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state of a training run, apart from its tensors: steps, non-padding positions and seconds so far.

    Random generators need no state: they are seeded with the seed and the step index at each step.
    ``best_step`` has the lowest validation loss; it is 0 for the initial weights, None before a validation.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    history: tuple[Validation, ...] = ()


_STATES = TypeAdapter(TrainingState)


@dataclass(frozen=True, slots=True)
class Found:
    """The newest intact checkpoint, if any, and a note on each newer damaged one."""

    state: TrainingState | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckpointStore:
    """The checkpoints of one training, one folder each in ``folder``, which need not exist.

    The fingerprint identifies model, data and settings; checkpoints with another one raise an error. The
    newest ``kept`` stay on disk, and the best of each.
    """

    folder: Path
    fingerprint: str
    kept: int = 2

    def path(self, step: int) -> Path:
        """The folder of the checkpoint after ``step`` optimizer steps."""
        return self.folder / f"{_PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """The steps of the checkpoints on disk, ascending."""
        names = [path.name.removeprefix(_PREFIX) for path in self.folder.glob(f"{_PREFIX}*")]
        return sorted(int(name) for name in names if name.isdigit())

    def last(self) -> Path | None:
        """The folder of the newest checkpoint on disk."""
        return self.path(steps[-1]) if (steps := self.steps()) else None

    def clear(self) -> None:
        """Delete all checkpoints."""
        remove(self.folder)

    def save(
        self, state: TrainingState, *, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]
    ) -> None:
        """Write a checkpoint and prune old ones; a ``CheckpointError`` leaves earlier ones intact."""
        target = self.path(state.step)
        temporary = self.folder / f".new-{target.name}"
        try:
            self._write(temporary, state, {"model": model, "optimizer": optimizer})
            self._put_in_place(temporary, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = self.steps()
            last = (
                f"the last one on disk, {self.path(kept[-1]).name}, is whole"
                if kept
                else "none is on disk yet"
            )
            raise CheckpointError(
                f"{target}: the checkpoint could not be written ({error}); {last}. "
                f"{remedy(error).capitalize()}, then resume"
            ) from error
        self._prune(state.step)

    def newest(self) -> Found:
        """The newest whole one; ``CheckpointError`` if all are damaged, or it has another fingerprint."""
        self._recover()
        notes: list[str] = []
        for step in reversed(self.steps()):
            try:
                state = self._whole_state(step)
                best = state.best_step
                if best is not None and os.path.lexists(self.path(best)):  # only keep: best loads it
                    self._whole_state(best)
                return Found(state, tuple(notes))
            except _Damaged as damage:
                notes.append(f"{self.path(step).name} is damaged ({damage}); trying the one before it")
        if notes:
            raise CheckpointError(
                f"{self.folder}: no checkpoint is whole: {'; '.join(notes)}. Start afresh, without resuming"
            )
        return Found(None)

    def verified_state(self, step: int) -> TrainingState:
        """Verify the checksums, then ``read_state``; ``CheckpointError`` also if a file is damaged."""
        try:
            return self._whole_state(step)
        except _Damaged as damage:
            raise CheckpointError(f"{self.path(step)}: {damage}; {START_AFRESH}") from damage

    def _whole_state(self, step: int) -> TrainingState:
        path = self.path(step)
        with _reading(path):
            checksums = read_json(path / _CHECKSUMS)
            for name in _FILES:
                if sha256(path / name) != checksums[name]:
                    raise _Damaged(f"{name} does not have the checksum it was written with")
        return self.read_state(step)

    def read_state(self, step: int) -> TrainingState:
        """Read the state, verified before; ``CheckpointError`` if it has another fingerprint or format."""
        path = self.path(step)
        with _reading(path):
            raw = read_json(path / _STATE, nan=True)
            for key, expected in (("format", FORMAT), ("fingerprint", self.fingerprint)):
                if raw.get(key) != expected:
                    raise CheckpointError(
                        f"{path}: {key} {raw.get(key)} found, expected {expected}: it was made by another "
                        "recipe or version. Use another output folder, or start afresh without resuming"
                    )
            state = _STATES.validate_python(raw)
            if state.step != step:
                raise _Damaged(f"it is that of step {state.step}")
            return state

    def tensors(self, step: int, name: str) -> dict[str, Tensor]:
        """The tensors of "model" or "optimizer", on the CPU; a ``CheckpointError`` if they cannot be read."""
        path = self.path(step) / f"{name}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error}); {START_AFRESH}") from error

    def _write(self, folder: Path, state: TrainingState, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, tensors in parts.items():
            save_file(
                {key: value.detach().cpu().contiguous() for key, value in tensors.items()},
                folder / f"{name}.safetensors",
            )
            advanced()
        described = {"format": FORMAT, "fingerprint": self.fingerprint, **asdict(state)}
        (folder / _STATE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
        checksums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
        (folder / _CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")
        for path in (*folder.iterdir(), folder):
            _flush(path)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        old = self.folder / f".old-{target.name}"
        if os.path.lexists(target):
            target.rename(old)
        temporary.rename(target)
        _flush(self.folder)
        remove(old)

    def _recover(self) -> None:
        """Complete or undo the renames that a killed process left unfinished."""
        for old in self.folder.glob(f".old-{_PREFIX}*"):
            target = self.folder / old.name.removeprefix(".old-")
            if target.exists():
                remove(old)
            else:
                old.rename(target)
        for new in self.folder.glob(f".new-{_PREFIX}*"):
            remove(new)

    def _prune(self, newest: int) -> None:
        steps = self.steps()
        # Steps after the newest are damaged checkpoints that were skipped on resuming.
        kept = set([step for step in steps if step <= newest][-self.kept :])
        for step in sorted(kept):
            with suppress(_Damaged):
                best = self.read_state(step).best_step
                kept |= {best} if best is not None else set()
        for step in set(steps) - kept:
            remove(self.path(step))


class _Damaged(CheckpointError):
    """A checkpoint with damaged files."""


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn errors on reading a damaged folder into ``_Damaged``; storage that does not answer is none."""
    try:
        with reading(path):
            yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged(f"{path.name}: {error}") from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    advanced()


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters, tied ones once, and the persistent buffers."""
    return {**trainable_parameters(module), **persistent_buffers(module)}


def persistent_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that are saved."""
    persistent = module.state_dict().keys()
    return {name: buffer for name, buffer in module.named_buffers() if name in persistent}


@dataclass(frozen=True, slots=True)
class TensorShapes:
    """The shapes by name of a checkpoint's tensors; of the whole module, before an engine partitions it."""

    model: Mapping[str, torch.Size]
    trained: Collection[str]

    @classmethod
    def of(cls, module: nn.Module) -> TensorShapes:
        """The shapes of a module's tensors, and which of them have an optimizer's state."""
        shapes = {name: shape_of(tensor) for name, tensor in model_tensors(module).items()}
        return cls(shapes, frozenset(trainable_parameters(module)))

    def check_model(self, tensors: Mapping[str, Tensor], *, place: Path, cure: str) -> None:
        """Raise ``CheckpointError`` if ``model_tensors`` have other names or shapes."""
        _refuse(place / "model.safetensors", cure, _faults(self.model, tensors))

    def check_optimizer(self, tensors: Mapping[str, Tensor], *, place: Path, cure: str) -> None:
        """Raise ``CheckpointError`` if ``optimizer_tensors`` are none, not of these weights, or incomplete.

        Weights that never had a gradient have no state; all others have the same kinds of it.
        """
        moved = {full_name.rpartition("/")[0] for full_name in tensors}
        kinds = {full_name.rpartition("/")[2] for full_name in tensors}
        scalar = torch.Size()
        expected = {
            f"{name}/{kind}": scalar if kind == "step" else self.model[name]
            for name in (moved & {*self.trained}) or self.trained
            for kind in kinds or ("exp_avg",)
        }
        _refuse(place / "optimizer.safetensors", cure, _faults(expected, tensors))


def _faults(expected: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> list[str]:
    """How tensors differ from the expected ones, which of them first."""
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    differing = [
        f"{name}: {tuple(tensors[name].shape)} found, {tuple(expected[name])} expected"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name]
    ]
    return [
        f"{len(names)} {what} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", differing))
        if names
    ]


def _refuse(place: Path, cure: str, faults: Sequence[str]) -> None:
    if faults:
        raise CheckpointError(
            f"{place}: its tensors are not those of this model: {'; '.join(faults)}; {cure}"
        )


@torch.no_grad()
def load_model_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, place: Path) -> None:
    """Copy into the module's tensors, which keeps ties; ``CheckpointError`` as ``matching_tensors``."""
    for name, tensor in matching_tensors(module, tensors, place=place).items():
        tensor.copy_(tensors[name])


def matching_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, place: Path) -> dict[str, Tensor]:
    """``model_tensors`` of the module; ``CheckpointError`` if names or shapes of those given differ."""
    TensorShapes.of(module).check_model(tensors, place=place, cure=START_AFRESH)
    return model_tensors(module)
