"""Which part of a student is compared with which part of a teacher."""

from __future__ import annotations

from typing import Literal

Site = int | Literal["embeddings", "last"]
"""An int is the state after a block, counted from 0."""
