"""Output files of ``--output`` and ``--html``, and the width of tables in files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.artifacts.atomic import write_json, write_text, writing
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table


def write_output(path: Path, value: object) -> None:
    """Write JSON atomically to the user's path, creating folders.

    Raises:
        UsageError, MissingResourceError: The path exists and is not a file, or cannot be written.
    """
    with _write_errors(path, "--output"):
        write_json(path.resolve(), value)


def write_page(path: Path, page: str) -> None:
    """Write HTML in the same way."""
    with _write_errors(path, "--html"):
        write_text(path.resolve(), page)


def refuse_no_file(path: Path, option: str) -> None:
    """Raise UsageError if the path is a folder or a device."""
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "not a plain file"
        example = "report.html" if option == "--html" else "scores.json"
        raise UsageError(f"{option} {path}: {what}; expected the name of a file, such as {example}")


def width_of(table: Table) -> int:
    """The width in characters at which no cell of a table is wrapped or truncated."""
    from rich.console import Console

    return max(Console(width=1000).measure(table).maximum, 40)


@contextmanager
def _write_errors(path: Path, option: str) -> Iterator[None]:
    refuse_no_file(path, option)
    with writing(path, option):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
