"""A table of planted faults: how a case is entered, and what is reported of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.errors import StlmKdError


@dataclass(frozen=True, slots=True)
class Place:
    """Where a case works."""

    folder: Path
    patch: pytest.MonkeyPatch


Case = Callable[[bool, Place], object]
"""``case(is_planted, place)`` raises or returns a message about the fault; a sound case does neither."""

CASES: dict[str, tuple[str, Case]] = {}


def case(name: str, words: str) -> Callable[[Case], Case]:
    """Add a case to the table, with words that the message about the fault must contain."""

    def enter(made: Case) -> Case:
        assert name not in CASES
        CASES[name] = (words, made)
        return made

    return enter


def told(work: Case, is_planted: bool, place: Place) -> str:
    """The message about a case: that of our error, or the note about a model."""
    try:
        found = work(is_planted, place)
    except StlmKdError as error:
        return str(error)
    if isinstance(found, SuiteResult):
        return "; ".join(sorted({score.degenerate for score in found.scores if score.degenerate}))
    return "" if found is None else str(found)
