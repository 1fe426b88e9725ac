"""Read and validate the JSON files of a run folder; errors name file, field and remedy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.atomic import in_the_way, read_plain
from stlm_kd.errors import CheckpointError

Found = TypeVar("Found")
_SHOWN = 40  # maximum characters of a found value in a message

AGAIN = "the run's command rewrites it"  # the remedy for most files of a run


def read_saved(
    path: Path, kind: TypeAdapter[Found], *, remedy: str, context: Mapping[str, Any] | None = None
) -> Found:
    """Read and validate a JSON file; CheckpointError with the remedy if it cannot be read or is invalid.

    ``context`` is for the validators of ``kind``.
    """
    try:
        return kind.validate_json(read_plain(path), context=context)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        way = in_the_way(error)
        fault = f"{way}, and repeat the command" if way else f"{path}: cannot be read ({reason}); {remedy}"
        raise CheckpointError(fault) from error
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: damaged, or of another version: {_format_error(error)}; {remedy}"
        ) from error


def _format_error(error: ValidationError) -> str:
    """The first fault with place, found and expected value, and the number of further faults."""
    faults = error.errors(include_url=False)
    first, others = faults[0], len(faults) - 1
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "json_invalid":
        text = first["msg"].replace("Invalid JSON", "no JSON")
    elif first["type"] == "missing":
        text = f"{place} is missing"
    else:
        expected = first["msg"].removeprefix("Value error, ").replace("Input should be ", "expected ")
        text = f"{place}: found {_truncated(first['input'])}, {expected}" if place else expected
    return f"{text} (and {others} more such faults)" if others else text


def _truncated(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
