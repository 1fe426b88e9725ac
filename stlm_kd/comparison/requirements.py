"""Checks before rows are compared: shared tasks, shared examples, lossless tokenizers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from stlm_kd.artifacts.results import Report, Row
from stlm_kd.comparison.metrics import BITS_PER_BYTE, Metric
from stlm_kd.comparison.pairing import faults_of
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.errors import DataError, first_of

Lossy = Literal["refuse", "leave out", "allow"]
"""How to handle a pair if one tokenizer loses part of the text."""

_OF_TEXT = {"perplexity", "pseudo-perplexity", "masked-loss"}
_BETWEEN_TOKENIZERS = ". Between tokenizers, bits per byte compare (--suite perplexity, pseudo-perplexity)"


def require_shared_tasks(table: ResultsTable, base: Row, sharing: Collection[str]) -> None:
    """Raise ``DataError``, with all metrics, if no row of a run or file shares one with the baseline."""
    others: dict[str, list[Row]] = {}
    for row in table.rows:
        if row is not base and row.source not in sharing:
            others.setdefault(row.source, []).append(row)
    if others:
        found = {base.name: [base], **others}
        lines = [f"  {name}: {_format_metrics(table, own)}" for name, own in found.items()]
        raise DataError("not the same tasks, so there is nothing to compare:\n" + "\n".join(first_of(lines)))


def _format_metrics(table: ResultsTable, rows: Sequence[Row]) -> str:
    names = {row.name for row in rows}
    found = dict.fromkeys(metric for model, metric in table.samples if model in names)
    return ", ".join(f"{one.suite} {one.task} {one.metric}" for one in found) or "none"


def require_same_examples(table: ResultsTable, pairs: Sequence[tuple[Row, Metric]], base: Row) -> None:
    """Raise ``DataError``, which names all pairs, for results on different examples."""
    faults: dict[tuple[str, str], list[str]] = {}
    for other, metric in pairs:
        own, others = (table.results_of(row, metric) for row in (base, other))
        if found := faults_of(table, others, own, metric):
            faults.setdefault((other.name, f"{metric.suite} {metric.task}".strip()), found)
    if faults:
        lines = [f"  {name}, {task}: {'; '.join(found)}" for (name, task), found in faults.items()]
        raise DataError(
            f"not the same examples as those of {base.name}, so nothing can be compared:\n"
            + "\n".join(first_of(lines))
            + "\nScore them on the same data: stlm-kd eval MODEL … --suite … --data FILE --output FILE"
            + (_BETWEEN_TOKENIZERS if {metric.suite for _, metric in pairs} & _OF_TEXT else "")
        )


def require_lossless(table: ResultsTable, pairs: Sequence[tuple[Row, Row, Metric]]) -> None:
    """Raise ``DataError``, which names all pairs, for bits per byte of a lossy tokenizer."""
    faults = [
        f"  {metric.name}: {fault}"
        for other, base, metric in pairs
        if (fault := lossy_fault(table, other, base, metric))
    ]
    if faults:
        raise DataError(
            "bits per byte are not comparable if a tokenizer loses part of the text, since it divides fewer "
            "nats by the same bytes:\n"
            + "\n".join(first_of(faults))
            + "\nCompare other metrics (--metric), or allow it all the same (--allow-lossy)"
        )


def lossy_fault(table: ResultsTable, one: Row, other: Row, metric: Metric) -> str:
    """Why two rows are not comparable in bits per byte; "" if they are, for example with the same tokenizer.

    A lossy tokenizer (case, accents, whitespace, unknown tokens) has fewer nats for the same bytes. A result
    that does not record the fraction of bytes kept counts as lossless.
    """
    if metric.metric not in BITS_PER_BYTE:
        return ""
    reports = [table.results_of(row, metric)["report"] for row in (one, other)]
    shares = [_bytes_kept(side) for side in reports]
    tokens = [{str(report.get("tokens")) for report in side} for side in reports]
    if min(shares) >= 1 or (shares[0] == shares[1] and tokens[0] == tokens[1]):
        return ""
    kept = [f"{share:.2%} with {each.name}'s" for share, each in zip(shares, (one, other), strict=True)]
    return f"bytes of the text kept by the tokenizers: {kept[0]}, {kept[1]}"


def _bytes_kept(reports: Iterable[Report]) -> float:
    known = [report.get("bytes_kept") for report in reports]
    return min((share for share in known if isinstance(share, float)), default=1.0)
