"""Parts of a recipe that disagree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from stlm_kd.errors import did_you_mean

Place: TypeAlias = tuple[str | int, ...]
Conflict: TypeAlias = tuple[tuple[Place, ...], str]
"""The places that disagree, the first of which is where the message stands; and the message."""


def known_names(name: str, names: Sequence[str]) -> str:
    """The nearest of the names that there are, in words."""
    return did_you_mean(name, names) or "; it has none"
