"""What a verification found, as text and as ``verification.json``."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from stlm_kd.artifacts.record import now, versions
from stlm_kd.errors import printable

Rung = Literal["none", "consistent", "rescored", "reproduced"]
"""How far a claim was confirmed: not at all; in itself; by scoring again; by training again."""

FORMAT = 1
_MOST_SHOWN = 400


@dataclass(frozen=True, slots=True)
class Finding:
    """A fact that does not fit a claim, or that could not be checked.

    Attributes:
        place: A file, or a row with seed and metric.
        message: What is wrong.
        refutes: Whether it contradicts the claim; otherwise it limits what the verification says.
        claimed: The claimed value; "" for none.
        found: The value that was found.
        p: p-value, corrected for all comparisons of its rung; None without a test.
    """

    place: str
    message: str
    refutes: bool = True
    claimed: str = ""
    found: str = ""
    p: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.place}: {self.message}"]
        if self.claimed or self.found:
            parts.append(f"claimed {self.claimed or 'nothing'}, found {self.found or 'nothing'}")
        if self.p is not None:
            parts.append(f"p {self.p:.2g}")
        return shortened("; ".join(parts))


def contradiction(place: str, message: str, claimed: object, found: object) -> Finding:
    """A finding that refutes a claimed value."""
    return Finding(place, message, claimed=str(claimed), found=str(found))


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a verification.

    Attributes:
        origin: The folder, or the address with its commit.
        rung: The highest rung that was reached without a contradiction.
        compared: What was compared, one sentence each.
        findings: Contradictions, and what could not be checked.
        made: Who verified: versions, platform, time.
    """

    origin: str
    rung: Rung
    compared: tuple[str, ...]
    findings: tuple[Finding, ...]
    made: dict[str, Any] = field(
        default_factory=lambda: {
            "on": now(),
            "python": platform.python_version(),
            "platform": platform.platform(terse=True),
            "packages": versions(),
        }
    )

    @property
    def refuted(self) -> bool:
        """Whether anything contradicts the claim."""
        return any(one.refutes for one in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The content of ``verification.json``; text from the verified files is escaped."""
        return {
            "format": FORMAT,
            "recipe": shortened(self.origin),
            "rung": self.rung,
            "refuted": self.refuted,
            "compared": [shortened(line) for line in self.compared],
            "findings": [
                {key: shortened(value) if isinstance(value, str) else value for key, value in each.items()}
                for each in map(asdict, self.findings)
            ],
            "made": self.made,
        }

    def as_text(self) -> str:
        """The result for a terminal: refutations first, then limits, then what was compared."""
        lines = [f"{shortened(self.origin)}: {'REFUTED' if self.refuted else _SAYS[self.rung]}"]
        lines += _section("Refuted:", [str(one) for one in self.findings if one.refutes])
        lines += _section("Not checked:", [str(one) for one in self.findings if not one.refutes])
        lines += _section("Compared:", [shortened(line) for line in self.compared])
        if self.refuted:
            lines.append(f"Highest rung without a contradiction: {self.rung}")
        return "\n".join(lines)


_SAYS = {
    "none": "nothing was confirmed",
    "consistent": "consistent: its files agree with each other; nothing was scored or trained again",
    "rescored": "rescored: the published weights have these scores; nothing was trained again",
    "reproduced": "reproduced: training again agrees with the claim; a rerun can only fail to refute it",
}


def shortened(text: str) -> str:
    """Text from elsewhere as one line for a terminal or a file, with all that does not print escaped."""
    return printable(text, keep="", most=_MOST_SHOWN)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [title, *(f"  {line}" for line in lines)] if lines else []


def listed(values: Iterable[object]) -> str:
    """Values in a message."""
    return ", ".join(map(str, values)) or "none"
