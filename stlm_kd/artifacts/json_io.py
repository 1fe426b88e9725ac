"""JSON that a run's folder holds, read as what it must be: a fault names file, field and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from stlm_kd.errors import CheckpointError

Found = TypeVar("Found")
_SHOWN = 40
"""Signs of what was found in a field."""

AGAIN = "the run's own command writes it anew"
"""What to do about most files of a run."""


def read_saved(path: Path, kind: TypeAdapter[Found], *, remedy: str) -> Found:
    """What a file holds, each field of the right kind.

    Args:
        path: A JSON file.
        kind: What it must hold.
        remedy: What to do where it does not.

    Raises:
        CheckpointError: It cannot be read, is no JSON, or holds something else.
    """
    try:
        return kind.validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(f"{path}: cannot be read ({reason}); {remedy}") from error
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged, or of another version: {_format_error(error)}; {remedy}"
        ) from error


def _format_error(error: ValidationError) -> str:
    """The first fault: where, what was found and what was expected; and how many more there are."""
    faults = error.errors(include_url=False)
    first, others = faults[0], len(faults) - 1
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        told = first["msg"].replace("Invalid JSON", "no JSON")
    elif first["type"] == "missing":
        told = f"{place} is missing"
    else:
        wanted = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
        told = f"{place or 'the whole'}: found {_truncated(first['input'])}, {wanted}"
    return f"{told} (and {others} more such faults)" if others else told


def _truncated(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
