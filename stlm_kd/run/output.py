"""The file that ``--output`` names."""

from __future__ import annotations

from pathlib import Path

from stlm_kd.errors import EnvironmentFault
from stlm_kd.run.record import write_json


def write_output(path: Path, value: object) -> None:
    """Write JSON where the user wants it; folders are made, and the file appears whole or not at all.

    Raises:
        EnvironmentFault: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise EnvironmentFault(f"{path}: cannot be written ({reason}); choose another --output") from error
