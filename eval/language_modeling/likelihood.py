"""Results from the likelihoods of pieces of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from stlm_kd.artifacts.results import ExampleScore, Json, Score, SuiteResult
from stlm_kd.eval.language_modeling.round_trip import lossy_note
from stlm_kd.eval.language_modeling.text_blocks import TextBlocks


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Comparable between tokenizers."""
    return nats / math.log(2) / num_bytes


def perplexity(nats: float, tokens: int) -> float:
    """The exponential of the mean nats per token; infinite where a float cannot hold it."""
    mean = nats / tokens
    return math.exp(mean) if mean < 709 else math.inf


@dataclass(frozen=True, slots=True)
class ScoredText:
    """The nats, tokens and UTF-8 bytes of a piece of text, and the nats of its blocks, if known."""

    nats: float
    tokens: int
    bytes: int
    blocks: TextBlocks | None = None


def likelihood_result(
    suite: str,
    pieces: Mapping[int, ScoredText],
    *,
    prefix: str = "",
    unknown: int,
    bytes_kept: float,
    degenerate: str | None,
    notes: Sequence[str],
    report: Mapping[str, Json],
) -> SuiteResult:
    """Bits per byte and perplexity over all pieces, with standard errors over the pieces.

    Pieces are by index in the text, and treated as independent. Metric names begin with ``prefix``.
    ``unknown`` is the number of unknown tokens, ``bytes_kept`` the fraction of the text's bytes that decoding
    restores, and ``degenerate`` why the model distinguishes no tokens, if so. The report gets the tokens and
    bytes of the pieces, which with their bits per byte give the scores again.
    """
    scored = pieces.values()
    nats, tokens = math.fsum(piece.nats for piece in scored), sum(piece.tokens for piece in scored)
    per_token = perplexity(nats, tokens)
    per_byte = bits_per_byte(nats, sum(piece.bytes for piece in scored))
    bits_stderr = ratio_stderr([(piece.nats / math.log(2), piece.bytes) for piece in scored])
    nats_stderr = ratio_stderr([(piece.nats, piece.tokens) for piece in scored])
    per_token_stderr = None if nats_stderr is None else nats_stderr * per_token
    score = partial(Score, "text", examples=len(pieces), higher_is_better=False, degenerate=degenerate)
    warnings = []
    if unknown:
        warnings.append(
            f"{unknown} of {tokens} tokens are unknown to the tokenizer: bits per byte are too "
            "low to compare with those of a tokenizer that can encode all of the text"
        )
    if bytes_kept < 1:
        warnings.append(lossy_note(bytes_kept))
    bits = f"{prefix}bits_per_byte"
    return SuiteResult(
        suite,
        (score(bits, per_byte, bits_stderr), score(f"{prefix}perplexity", per_token, per_token_stderr)),
        tuple(
            ExampleScore("text", str(index), bits, bits_per_byte(piece.nats, piece.bytes))
            for index, piece in pieces.items()
            if piece.bytes
        ),
        (*warnings, *notes),
        {**report, "pieces": {"tokens": [p.tokens for p in scored], "bytes": [p.bytes for p in scored]}},
    )


def ratio_stderr(pairs: Sequence[tuple[float, int]]) -> float | None:
    """Standard error of (sum of the first) / (sum of the second) over independent pairs; None for one."""
    if len(pairs) < 2:
        return None
    below = sum(size for _, size in pairs)
    ratio = math.fsum(value for value, _ in pairs) / below
    squares = math.fsum((value - ratio * size) ** 2 for value, size in pairs)
    return math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / below
