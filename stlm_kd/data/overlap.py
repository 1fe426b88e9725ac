"""Overlap of training and validation data: files by content, documents by a hash of their text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt


Hashes: TypeAlias = "npt.NDArray[np.uint64]"

_BLOCK = 1 << 20  # hashes looked up at once


def text_hash(*texts: str) -> int:
    """A 64-bit hash of a document, or of the texts of an example; runs of white space count as one space.

    >>> text_hash("a  cat\\n") == text_hash("a cat") != text_hash("a", "cat")
    True
    """
    spaced = "\0".join(" ".join(text.split()) for text in texts)
    digest = hashlib.blake2b(spaced.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def found_in(held: Hashes, training: Iterable[Hashes]) -> npt.NDArray[np.bool_]:
    """For each held-out document, whether a training document has the same text, (documents,).

    >>> found_in(np.array([5, 1, 5, 9], np.uint64), [np.array([5, 7], np.uint64)]).tolist()
    [True, False, True, False]
    """
    different = np.unique(held)
    known = np.zeros(len(different), np.bool_)
    may_be = np.zeros(1 << 20, np.bool_)
    may_be[different >> np.uint64(44)] = True  # by the first 20 bits
    for hashes in training:
        for begin in range(0, len(hashes), _BLOCK):
            block = hashes[begin : begin + _BLOCK]
            block = block[may_be[block >> np.uint64(44)]]
            places = np.minimum(np.searchsorted(different, block), len(different) - 1)
            known[places[different[places] == block]] = True
    return np.isin(held, different[known])


def identical_file(held: Sequence[Path], training: Sequence[Path]) -> tuple[Path, Path] | None:
    """The first held-out file with the same content as a training file, and that training file."""
    sizes = {path.stat().st_size for path in training}
    alike = [path for path in held if path.stat().st_size in sizes]
    if not alike:
        return None
    known = {known_sha256(path): path for path in training}
    return next(((path, known[h]) for path in alike if (h := known_sha256(path)) in known), None)
