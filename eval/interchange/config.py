"""Which interventions on held-out data a student is compared with its teachers by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

HeldOutSource = Literal["other-example", "in-context-random", "mixup", "input-tokens"]
"""Where the other states come from: the sources that need no thesaurus."""


@dataclass(frozen=True, slots=True)
class PairConfig:
    """Which interventions.

    Attributes:
        source: Name in ``SOURCES``.
        positions: Neighbours, or any.
        rows: Of the held-out text, or examples; drawn by the seed, at most.
        seed: Of everything drawn.
    """

    source: HeldOutSource = "other-example"
    positions: Literal["consecutive", "random"] = "consecutive"
    rows: int = 256
    seed: int = 0
