"""Checks before rows are compared: shared tasks, shared examples, lossless tokenizers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from stlm_kd.comparison.difference import sample_of
from stlm_kd.comparison.entries import Entry, metrics_of
from stlm_kd.comparison.lossy import lossy_fault
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.pairing import faults_of
from stlm_kd.errors import DataError

_OF_TEXT = {"perplexity", "pseudo-perplexity", "masked-loss"}
_BETWEEN_TOKENIZERS = ". Between tokenizers, bits per byte compare (--suite perplexity, pseudo-perplexity)"


def require_shared_tasks(entries: Sequence[Entry], base: Entry, sharing: Collection[str]) -> None:
    """Refuse a run or file if none of its rows shares a metric with the baseline.

    Raises:
        DataError: No shared metric; the message lists the metrics of each.
    """
    sources = dict.fromkeys(one.source for one in entries)
    rows = {
        source: [one for one in entries if one.source == source and one is not base] for source in sources
    }
    strange = [source for source, others in rows.items() if others and source not in sharing]
    if strange:
        lines = [f"  {base.name}: {_format_metrics([base])}"]
        lines += [f"  {source}: {_format_metrics(rows[source])}" for source in strange]
        raise DataError("not the same tasks, so there is nothing to compare:\n" + "\n".join(lines))


def _format_metrics(entries: Sequence[Entry]) -> str:
    return ", ".join(f"{one.suite} {one.task} {one.metric}" for one in metrics_of(entries)) or "none"


def require_same_examples(pairs: Sequence[tuple[Entry, Metric]], base: Entry) -> None:
    """Refuse results on different examples.

    Raises:
        DataError: The examples differ; one message names all pairs.
    """
    faults: dict[tuple[str, str], list[str]] = {}
    for other, metric in pairs:
        own, others = (sample_of(one, metric).results for one in (base, other))
        if found := faults_of(others, own, metric):
            faults.setdefault((other.name, f"{metric.suite} {metric.task}".strip()), found)
    if faults:
        lines = [f"  {name}, {task}: {'; '.join(found)}" for (name, task), found in faults.items()]
        raise DataError(
            f"not the same examples as those of {base.name}, so nothing can be compared:\n"
            + "\n".join(lines)
            + "\nScore them on the same data: stlm-kd eval MODEL … --suite … --data FILE --output FILE"
            + (_BETWEEN_TOKENIZERS if {metric.suite for _, metric in pairs} & _OF_TEXT else "")
        )


def require_lossless(pairs: Sequence[tuple[Entry, Entry, Metric]]) -> None:
    """Refuse bits per byte of a lossy tokenizer.

    Raises:
        DataError: A tokenizer is lossy; the message names all pairs.
    """
    faults = [
        f"  {metric.label[:-2]}: {fault}"
        for other, base, metric in pairs
        if (fault := lossy_fault(other, base, metric))
    ]
    if faults:
        raise DataError(
            "bits per byte are not comparable if a tokenizer loses part of the text, since it divides fewer "
            "nats by the same bytes:\n"
            + "\n".join(faults)
            + "\nCompare other metrics (--metric), or allow it all the same (--allow-lossy)"
        )
