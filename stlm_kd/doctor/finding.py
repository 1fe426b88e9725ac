"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warning", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis.

    Attributes:
        check: What was checked.
        status: Whether it is right; a fault stops commands that need it.
        found: What was found.
        cure: What to do; "" if it is right.
    """

    check: str
    status: Status
    found: str
    cure: str = ""
