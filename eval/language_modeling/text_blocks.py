"""The loss of a document by blocks of its text, which do not depend on the tokenizer.

A block is ``BLOCK_BYTES`` bytes of UTF-8, rounded up to a whole character. A token belongs to the block in
which it begins, so the blocks of two models cover the same text, except for tokens that cross a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedTokenizerBase

BLOCK_BYTES = 1024


@dataclass(frozen=True, slots=True)
class TextBlocks:
    """A document's blocks in order: the nats of the tokens that begin in each, and its bytes."""

    nats: tuple[float, ...]
    bytes: tuple[int, ...]


def token_starts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]] | None:
    """The character at which each token of each text begins; None if the tokenizer has no offsets."""
    if not tokenizer.is_fast:
        return None
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [[begin for begin, _ in row] for row in found["offset_mapping"]]


def text_blocks(
    text: str, starts: Sequence[int], nats_T: npt.ArrayLike, *, size: int = BLOCK_BYTES
) -> TextBlocks:
    """The blocks of a text that is not empty, from each token's first character and loss; ``size`` in bytes.

    >>> text_blocks("abcdé", [0, 2, 4], [1.0, 2.0, 4.0], size=3)
    TextBlocks(nats=(3.0, 4.0), bytes=(3, 3))
    """
    bytes_C = _bytes_of_characters(text)
    block_C = (np.cumsum(bytes_C) - bytes_C) // size
    blocks_T = block_C[np.minimum(np.asarray(starts, np.int64), len(block_C) - 1)]
    sums = np.bincount(blocks_T, weights=np.asarray(nats_T, np.float64), minlength=int(block_C[-1]) + 1)
    counts = np.bincount(block_C, weights=bytes_C)
    return TextBlocks(tuple(sums.tolist()), tuple(int(count) for count in counts))


def _bytes_of_characters(text: str) -> npt.NDArray[np.int64]:
    """UTF-8 bytes of each character, (C,)."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return np.searchsorted([0x80, 0x800, 0x10000], points, side="right").astype(np.int64) + 1
