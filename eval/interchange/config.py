"""Options of the interventions that compare a student with its teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SUITE = "interchange"
ALL = "all layers"
"""The task of scores over all layers."""

HeldOutSource = Literal["other-example", "in-context-random", "mixup", "input-tokens"]
"""Sources of the swapped-in hidden states that need no thesaurus."""


@dataclass(frozen=True, slots=True)
class PairConfig:
    """The interventions to draw.

    Attributes:
        source: Name in ``SOURCES``.
        positions: Contiguous or random positions.
        rows: Maximum rows of held-out text, or examples, drawn by the seed.
        seed: Random seed.
    """

    source: HeldOutSource = "other-example"
    positions: Literal["consecutive", "random"] = "consecutive"
    rows: int = 256
    seed: int = 0
