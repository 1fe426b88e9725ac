"""Tokens in memory, as tests of batches and of masks read them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stlm_kd.data.token_store import TokenStore

START, END = 0, 1


def store_of(bodies: Iterable[list[int]]) -> TokenStore:
    """Each body as a document between the start and the end token."""
    documents = [[START, *body, END] for body in bodies]
    return TokenStore(
        folder=Path("memory"),
        tokens=np.array([token for document in documents for token in document], np.uint16),
        offsets=np.cumsum([0, *map(len, documents)]),
        document_bytes=np.ones(len(documents), np.int64),
        document_hashes=np.arange(len(documents), dtype=np.uint64),
        vocab_size=60_001,
        eos_id=END,
        ends_inside=0,
    )
