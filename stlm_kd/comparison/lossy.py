"""Bits per byte of tokenizers from whose ids a part of the text does not come back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.comparison.entries import Entry
from stlm_kd.comparison.metrics import BITS_PER_BYTE, Metric

Lossy = Literal["refuse", "leave out", "allow"]
"""What becomes of a pair of which a tokenizer loses a part of the text."""


def lossy_fault(one: Entry, other: Entry, metric: Metric) -> str:
    """Why two rows do not compare in bits per byte; "" where they do, as those of one and the same tokenizer.

    A lossy tokenizer (case, accents, blanks, unknown tokens) has fewer nats for the same bytes. A result that
    does not tell what share of the bytes comes back counts as if all did.
    """
    if metric.metric not in BITS_PER_BYTE:
        return ""
    sides = [[result for seed in each.results(metric) for result in seed] for each in (one, other)]
    shares = [_bytes_kept(side) for side in sides]
    tokens = [{str(result.report.get("tokens")) for result in side} for side in sides]
    if min(shares) >= 1 or (shares[0] == shares[1] and tokens[0] == tokens[1]):
        return ""
    told = [f"{share:.2%} of {each.name}'s" for share, each in zip(shares, (one, other), strict=True)]
    return f"of the text's bytes, {told[0]} and {told[1]} come back from the tokenizer"


def _bytes_kept(results: Sequence[SuiteResult]) -> float:
    known = [result.report.get("bytes_kept") for result in results]
    return min((share for share in known if isinstance(share, float)), default=1.0)
