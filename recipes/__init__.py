"""Built-in recipes, one YAML file each; listing them reads their first lines alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A recipe, or a list of objectives, of the package; ``purpose`` is the first line of its header."""

    name: str
    kind: Literal["recipe", "objectives"]
    path: Path
    purpose: str


def list_recipes() -> list[BuiltIn]:
    """The built-in recipes, then the lists of objectives that a recipe may name, by name.

    >>> list_recipes()[0].name
    'adapt-qwen2-0.5b'
    """
    return [*built_in(), *built_in_objectives()]


def folder() -> Path:
    """The folder of the built-in recipes."""
    return Path(__file__).parent


def built_in() -> list[BuiltIn]:
    """The recipes of the package, by name."""
    return [BuiltIn(path.stem, "recipe", path, purpose(path)) for path in sorted(folder().glob("*.yaml"))]


def built_in_objectives() -> list[BuiltIn]:
    """The lists of objectives of the package, which a recipe may name (``objectives: NAME``)."""
    paths = sorted((folder() / "objectives").glob("*.yaml"))
    return [BuiltIn(path.stem, "objectives", path, purpose(path)) for path in paths]


def purpose(path: Path) -> str:
    """The first line of a recipe's header comment, or ""."""
    first, *_ = path.read_text(encoding="utf-8").splitlines() or [""]
    return first.lstrip("# ").removeprefix("Purpose:").strip() if first.startswith("#") else ""
