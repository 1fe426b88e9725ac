"""metrics.jsonl: one JSON object per logged step and validation, truncated when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from pydantic import JsonValue, TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import remedy, write_text
from stlm_kd.errors import CheckpointError
from stlm_kd.tracking.metrics import StepMetrics, Tracker, ValidationMetrics

Line: TypeAlias = "dict[str, str | int | float | bool | dict[str, float]]"

_LINES: TypeAdapter[Line] = TypeAdapter(dict[str, JsonValue])  # type: ignore[arg-type]  # wider than is written
"""Any object; readers check the types of values."""


class JsonlTracker(Tracker):
    """Appends to a file. Each line has ``kind`` ("step", "validation" or "note") and ``stage``.

    Lines of an earlier process remain until ``rewind``. Any method raises CheckpointError if the file cannot
    be written (such as on a full disk).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stage = ""
        self._step = 0

    def stage(self, name: str) -> None:
        self._stage, self._step = name, 0

    def rewind(self, step: int) -> None:
        """Delete this stage's lines after ``step``, and a line that a killed process left incomplete.

        Also deletes the validation at ``step``, since a resumed training reports it again.
        """
        self._step = step
        if not self.path.exists():
            return
        kept = [line for line in _lines(self.path) if not self._is_later(line, step)]
        try:
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def step(self, metrics: StepMetrics) -> None:
        self._step = metrics.step
        self._write({"kind": "step", "stage": self._stage, **asdict(metrics)})

    def validation(self, metrics: ValidationMetrics) -> None:
        self._step = metrics.step
        self._write({"kind": "validation", "stage": self._stage, **asdict(metrics)})

    def note(self, message: str) -> None:
        """Write a line of kind "note", at the last step."""
        self._write({"kind": "note", "stage": self._stage, "step": self._step, "message": message})

    def _is_later(self, line: Line, step: int) -> bool:
        at = line.get("step")
        if line.get("stage") != self._stage or not isinstance(at, int):
            return False
        return at > step or (at == step and line.get("kind") == "validation")

    def _write(self, line: Line) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise _cannot_write(self.path, error) from error


def read_metrics(path: Path) -> list[Line]:
    """All complete lines of a metrics file; [] without a file, CheckpointError if it cannot be read."""
    try:
        return list(_lines(path)) if path.is_file() else []
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error


def _lines(path: Path) -> Iterator[Line]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield _LINES.validate_json(text)
        except ValidationError:
            continue


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be written ({error.strerror or error}); {remedy(error)}, then resume: "
        "the checkpoints on disk are untouched"
    )
