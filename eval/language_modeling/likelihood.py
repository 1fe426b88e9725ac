"""Scores from the likelihoods of pieces of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stlm_kd.artifacts.results import Score


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Comparable between tokenizers."""
    return nats / math.log(2) / num_bytes


def perplexity(nats: float, tokens: int) -> float:
    """The exponential of the mean nats per token; infinite where a float cannot hold it."""
    mean = nats / tokens
    return math.exp(mean) if mean < 709 else math.inf


def likelihood_scores(
    pieces: Sequence[tuple[float, int, int]], *, prefix: str = "", degenerate: str | None = None
) -> tuple[Score, Score]:
    """Bits per byte and perplexity over all pieces, with standard errors over the pieces.

    Args:
        pieces: Nats, tokens and UTF-8 bytes of each, treated as independent.
        prefix: Prefix of the metric names.
        degenerate: Why the model distinguishes no tokens, if so.
    """
    nats = math.fsum(piece[0] for piece in pieces)
    per_token = perplexity(nats, sum(piece[1] for piece in pieces))
    per_byte = bits_per_byte(nats, sum(piece[2] for piece in pieces))
    bits_stderr = ratio_stderr([(nats / math.log(2), size) for nats, _, size in pieces])
    nats_stderr = ratio_stderr([(nats, tokens) for nats, tokens, _ in pieces])
    return (
        Score(
            "text",
            f"{prefix}bits_per_byte",
            per_byte,
            bits_stderr,
            len(pieces),
            higher_is_better=False,
            degenerate=degenerate,
        ),
        Score(
            "text",
            f"{prefix}perplexity",
            per_token,
            None if nats_stderr is None else nats_stderr * per_token,
            len(pieces),
            higher_is_better=False,
            degenerate=degenerate,
        ),
    )


def unknown_note(unknown: int, tokens: int) -> str:
    """A note on bits per byte if the tokenizer cannot encode all of the text."""
    return (
        f"{unknown} of {tokens} tokens are unknown to the tokenizer: bits per byte are too "
        "low to compare with those of a tokenizer that can encode all of the text"
    )


def ratio_stderr(pairs: Sequence[tuple[float, int]]) -> float | None:
    """Standard error of (sum of the first) / (sum of the second) over independent pairs; None for one."""
    if len(pairs) < 2:
        return None
    below = sum(size for _, size in pairs)
    ratio = math.fsum(value for value, _ in pairs) / below
    squares = math.fsum((value - ratio * size) ** 2 for value, size in pairs)
    return math.sqrt(squares * len(pairs) / (len(pairs) - 1)) / below
