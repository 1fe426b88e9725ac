"""Bits per byte of tokenizers that do not reproduce the whole text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.comparison.entries import Entry
from stlm_kd.comparison.metrics import BITS_PER_BYTE, Metric

Lossy = Literal["refuse", "leave out", "allow"]
"""How to handle a pair if one tokenizer loses part of the text."""


def lossy_fault(one: Entry, other: Entry, metric: Metric) -> str:
    """Why two rows are not comparable in bits per byte; "" if they are, for example with the same tokenizer.

    A lossy tokenizer (case, accents, whitespace, unknown tokens) has fewer nats for the same bytes. A result
    that does not record the fraction of bytes kept counts as lossless.
    """
    if metric.metric not in BITS_PER_BYTE:
        return ""
    sides = [[result for seed in each.results(metric) for result in seed] for each in (one, other)]
    shares = [_bytes_kept(side) for side in sides]
    tokens = [{str(result.report.get("tokens")) for result in side} for side in sides]
    if min(shares) >= 1 or (shares[0] == shares[1] and tokens[0] == tokens[1]):
        return ""
    kept = [f"{share:.2%} with {each.name}'s" for share, each in zip(shares, (one, other), strict=True)]
    return f"bytes of the text kept by the tokenizers: {kept[0]}, {kept[1]}"


def _bytes_kept(results: Sequence[SuiteResult]) -> float:
    known = [result.report.get("bytes_kept") for result in results]
    return min((share for share in known if isinstance(share, float)), default=1.0)
