"""Similarity of tokens in a text: co-occurrence (PPMI) embeddings.

Shapes: V tokens of the vocabulary, A dimensions of the vectors, T tokens of the text, N tokens to represent
by others (anchors), at most K anchors each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt
    from scipy.sparse import csr_matrix

Floats: TypeAlias = "npt.NDArray[np.float32]"
Integers: TypeAlias = "npt.NDArray[np.int64]"

WINDOW = 5
"""Size of the co-occurrence window to either side."""

DIMENSIONS = 128
"""Maximum dimension of the vectors."""

NEAREST = 256
"""Maximum number of anchors per token."""

_SMOOTHED = 0.75
_CHUNK = 1_000_000


@dataclass(frozen=True, slots=True)
class Likeness:
    """Tokens ``ids`` (N,) as combinations of their ``anchors`` (N, K), by weights (N, K) that sum to 1."""

    ids: Integers
    anchors: Integers
    weights: Floats


def likeness(vectors_VA: Floats, ids: Integers, anchors: Integers) -> Likeness:
    """Weights of the most similar anchors of each token: the sparsemax of the cosines of ``ppmi_vectors``.

    Tokens and anchors without a vector are omitted; all tokens, if no anchor has one.
    """
    known = np.abs(vectors_VA).sum(1) > 0
    anchors = anchors[known[anchors]]
    ids = ids[known[ids]] if len(anchors) else ids[:0]
    nearest = min(NEAREST, len(anchors))
    places, weights = np.zeros((len(ids), nearest), np.int64), np.zeros((len(ids), nearest), np.float32)
    rows = max(1, _CHUNK // max(1, len(anchors)))
    for begin in range(0, len(ids), rows):
        some = slice(begin, begin + rows)
        cosines = vectors_VA[ids[some]] @ vectors_VA[anchors].T
        places[some] = np.argpartition(-cosines, nearest - 1, axis=1)[:, :nearest]
        weights[some] = sparsemax(np.take_along_axis(cosines, places[some], 1))
    return Likeness(ids, anchors[places], weights)


def sparsemax(values_NK: Floats) -> Floats:
    """Projection of each row onto the probability simplex, (N, K).

    Martins and Astudillo, "From Softmax to Sparsemax", 2016, algorithm 1.

    >>> print(sparsemax(np.array([[0.9, 0.5, -1.0]], np.float32)).round(2))
    [[0.7 0.3 0. ]]
    """
    falling = -np.sort(-values_NK, axis=1)
    above = np.cumsum(falling, axis=1) - 1
    support = (falling * np.arange(1, values_NK.shape[1] + 1) > above).sum(1)
    threshold = above[np.arange(len(values_NK)), support - 1] / support
    return np.asarray(np.maximum(values_NK - threshold[:, None], 0), np.float32)


def ppmi_vectors(tokens_T: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], size: int) -> Floats:
    """Unit vector of each of ``size`` tokens from co-occurrences, (V, A); zeros for those that are too rare.

    Truncated SVD of the positive pointwise mutual information (PPMI) of tokens at most ``WINDOW`` apart, with
    context counts raised to 3/4 and singular vectors weighted by the square root of their singular values.
    word2vec and fastText with negative sampling approximate this (Levy, Goldberg and Dagan, "Improving
    Distributional Similarity with Lessons Learned from Word Embeddings", 2015); it is deterministic and needs
    no further dependency. ``offsets`` are the documents' starts in ``tokens_T``, and the end of the last.
    """
    from scipy.sparse.linalg import svds

    information = _positive_information(company(tokens_T, offsets, size))
    dimensions = min(DIMENSIONS, size - 1)
    if information.nnz <= dimensions:
        return np.zeros((size, dimensions), np.float32)
    left, values, _ = svds(information, k=dimensions, v0=np.ones(size), solver="arpack")
    vectors = left * np.sqrt(np.maximum(values, 0))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-6)
    return np.asarray(unit, np.float32)


def company(tokens_T: npt.NDArray[np.integer], offsets: npt.NDArray[np.int64], size: int) -> csr_matrix:
    """Symmetric counts of token pairs at most ``WINDOW`` apart within a document, (V, V)."""
    from scipy.sparse import csr_matrix

    num_tokens = len(tokens_T)
    counts = csr_matrix((size, size), dtype=np.float64)
    for begin in range(0, num_tokens, _CHUNK):
        end = min(begin + _CHUNK + WINDOW, num_tokens)
        ids = np.asarray(tokens_T[begin:end], np.int64)
        documents = np.searchsorted(offsets, np.arange(begin, end), side="right")
        for distance in range(1, WINDOW + 1):
            same = documents[:-distance] == documents[distance:]
            same[_CHUNK:] = False  # these belong to the next chunk
            first, second = ids[:-distance][same], ids[distance:][same]
            counts = counts + csr_matrix((np.ones(len(first)), (first, second)), shape=(size, size))
    return counts + counts.T


def _positive_information(counts: csr_matrix) -> csr_matrix:
    from scipy.sparse import csr_matrix

    found = counts.tocoo()
    total = found.data.sum()
    of_row = np.asarray(counts.sum(1)).ravel()
    smoothed = of_row**_SMOOTHED
    expected = of_row[found.row] * smoothed[found.col] / max(smoothed.sum(), 1.0)
    information = np.maximum(np.log(found.data) - np.log(expected), 0) if total else found.data
    kept = information > 0
    return csr_matrix((information[kept], (found.row[kept], found.col[kept])), shape=counts.shape)
