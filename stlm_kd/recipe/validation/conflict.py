"""Conflicts between parts of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from stlm_kd.errors import did_you_mean

Place: TypeAlias = tuple[str | int, ...]
Conflict: TypeAlias = tuple[tuple[Place, ...], str]
"""The conflicting places, the first of which the message is reported at; and the message."""


def known_names(name: str, names: Sequence[str]) -> str:
    """A hint with the nearest known name."""
    return did_you_mean(name, names) or "; it has none"
