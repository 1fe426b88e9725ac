"""Pairs the examples of two models by id and text, and refuses results on different examples.

Other recorded facts are checked too (bytes of a text, number of documents, labels, a hash of all texts, shots
and version of a task), so that two data sets numbered from 0 are not mistaken for one. Rows without ids are
identified by their index, which pairs rows of the same file; it pairs nothing if texts are not recorded.

Shapes: M models (one for each seed and fine-tuning), N examples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from annotated_types import Ge, Le, Lt
from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.results import LARGEST, Json, Report
from stlm_kd.comparison.metrics import BITS_PER_BYTE, Metric
from stlm_kd.comparison.resampling import (
    OF_CLASSES,
    OF_ENTITIES,
    OF_NUMBERS,
    resampled,
    resampled_blocks,
    resampled_entities,
)
from stlm_kd.comparison.results_table import ResultsTable

Floats = npt.NDArray[np.float64]

_SAME_TEXT: Mapping[str, tuple[str, ...]] = {
    "perplexity": ("documents", "bytes"),
    "pseudo-perplexity": ("documents",),
    "masked-loss": ("documents",),
}
_SAME_READING: Mapping[str, tuple[str, ...]] = {
    "pseudo-perplexity": ("tokens", "windows", "window", "seed", "scored_windows"),
    "masked-loss": ("tokens", "windows", "window", "seed", "share", "masked_tokens"),
}
"""Facts that match if tokenizers and windows do; the examples of these suites depend on both."""

_OF_A_TASK = ("n-shot", "versions", "requests")
"""Fields of the ``lm-eval`` report that determine a task's examples."""

_MOST_CLASSES = 100
"""Limit for resampling confusion matrices, whose size is the square of this."""

_Class = Annotated[int, Ge(0), Lt(_MOST_CLASSES)]
_Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]
_Entities = Mapping[str, tuple[_Number, _Number, _Number]]
_CLASSES: TypeAdapter[Mapping[str, float]] = TypeAdapter(Mapping[str, _Class])
_NUMBERS: TypeAdapter[Mapping[str, float]] = TypeAdapter(Mapping[str, _Number])
_ENTITIES: TypeAdapter[Mapping[str, _Entities]] = TypeAdapter(Mapping[str, _Entities])
Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class _Blocks:
    """The report of ``perplexity``: nats and bytes of the blocks, by document."""

    nats: tuple[tuple[_Number, ...], ...]
    bytes: tuple[tuple[Annotated[int, Ge(1), Le(2**40)], ...], ...]


_BLOCKS: TypeAdapter[_Blocks] = TypeAdapter(_Blocks)

_OTHER_TEXTS = (
    "the same ids have different texts, or the same texts in another order: rows without a column idx or id "
    "are identified by their row number"
)
_UNKNOWN_TEXTS = (
    "one of them does not record its texts, and its ids are only row numbers, perhaps in another order"
)

_PER_TOKEN = {"masked_loss", "masked_accuracy"}


@dataclass(frozen=True, slots=True)
class PairedExamples:
    """A metric of both rows' models on the same examples, (M, N); ``is_mean``: scores are means of these."""

    first: Floats
    second: Floats
    is_mean: bool


@dataclass(frozen=True, slots=True)
class ResampledDifference:
    """A metric that is not a mean: its difference on resampled examples, (R,), and the number of examples.

    For bits per byte, the examples are documents, or blocks within few documents; ``within`` is the number of
    these documents, and 0 if documents or other examples were resampled.
    """

    drawn: Floats
    examples: int
    within: int = 0


@dataclass(frozen=True, slots=True)
class NotPaired:
    """Why the examples are not paired; ``is_comparable``: whether the scores are still comparable."""

    reason: str
    is_comparable: bool


Pairing = PairedExamples | ResampledDifference | NotPaired


def faults_of(table: ResultsTable, here: pd.DataFrame, baseline: pd.DataFrame, metric: Metric) -> list[str]:
    """Differences between a row's examples and the baseline's, as text; [] if there are none."""
    ids = {
        result: set(table.examples(result, metric.task).index)
        for result in (*here["result"], *baseline["result"])
    }
    found: dict[str, None] = {}
    for one, other in product(here.itertuples(), baseline.itertuples()):
        if _reads_alike(one.report, other.report, metric.suite):
            found.update(dict.fromkeys(_unlike_ids(ids[one.result], ids[other.result])))
            if one.examples != other.examples:
                found[_unlike("examples", one.examples, other.examples)] = None
        both = ids[one.result], ids[other.result]
        found.update(dict.fromkeys(_unlike_facts(one.report, other.report, metric, both)))
        if not found and _reads_alike(one.report, other.report, metric.suite):
            texts = (table.texts(each.result, metric.task) for each in (one, other))
            found.update(dict.fromkeys(_unlike_texts(*texts)))
    return list(found)


def _unlike_facts(one: Report, other: Report, metric: Metric, ids: Iterable[set[str]]) -> Iterator[str]:
    facts = {
        name: [report.get(name) for report in (one, other)]
        for name in (*_SAME_TEXT.get(metric.suite, ()), "labels", "texts", "interventions")
    }
    for name in _OF_A_TASK:
        facts[name] = [_of_task(report, name, metric.task) for report in (one, other)]
    for name, (own, others) in facts.items():
        if name == "texts" and own != others and all(map(_are_places, ids)):
            yield _OTHER_TEXTS if own is not None and others is not None else _UNKNOWN_TEXTS
        elif own is not None and others is not None and own != others:
            yield _unlike(name, own, others)


def _unlike_texts(own: Mapping[str, str], others: Mapping[str, str]) -> Iterator[str]:
    shared = own.keys() & others.keys()
    if unlike := sorted(name for name in shared if own[name] != others[name]):
        yield f"the texts of {len(unlike)} of {len(shared)} examples differ, such as that of {unlike[0]!r}"


def _are_places(ids: set[str]) -> bool:
    """Whether the ids are only row numbers."""
    return bool(ids) and ids == {str(place) for place in range(len(ids))}


def pair(table: ResultsTable, first: pd.DataFrame, second: pd.DataFrame, metric: Metric) -> Pairing:
    """Pair the examples of two rows without ``faults_of``, given each one's lines of the metric."""
    results, count = pd.concat([first, second]), len(first)
    reports = [*results["report"]]
    if not all(_reads_alike(reports[0], other, metric.suite) for other in reports):
        if metric.metric in _PER_TOKEN:
            return NotPaired("their tokens differ, so scores per token differ in unit", is_comparable=False)
        return NotPaired("their tokens differ, so the windows of text differ", is_comparable=True)
    scores_M = results["value"].to_numpy()
    if (drawn := _of_blocks(reports, scores_M, count, metric)) is not None:
        return drawn
    examples = (table.examples(result, metric.task) for result in results["result"])
    values = pd.concat([one.loc[one["metric"] == metric.metric, "value"] for one in examples], axis=1)
    if len(values) > 1 and (values.abs() <= LARGEST).all(axis=None):
        values_MN = np.ascontiguousarray(values.to_numpy().T)
        is_mean = bool(np.allclose(values_MN.mean(1), scores_M, rtol=1e-6, atol=1e-9))
        return PairedExamples(values_MN[:count], values_MN[count:], is_mean)
    return _resampled(reports, scores_M, count, metric) or NotPaired(
        "no results of several single examples", is_comparable=True
    )


def _resampled(
    reports: Sequence[Report], scores_M: Floats, first: int, metric: Metric
) -> ResampledDifference | None:
    """Resample the predictions and labels, or entities, in the reports; None if missing or inconsistent."""
    if metric.metric in OF_ENTITIES:
        counts = [_facts_by_example(report, "entities", _ENTITIES) for report in reports]
        names = [*counts[0]]
        if len(names) < 2 or any(found.keys() != counts[0].keys() for found in counts):
            return None
        drawn = resampled_entities(metric.metric, [[found[name] for name in names] for found in counts])
        return _difference(scores_M, first, drawn, examples=len(names))
    if metric.metric not in (*OF_CLASSES, *OF_NUMBERS):
        return None
    known = _CLASSES if metric.metric in OF_CLASSES else _NUMBERS
    labels = _facts_by_example(reports[0], "labels", known)
    predicted = [_facts_by_example(report, "predictions", known) for report in reports]
    if len(labels) < 2 or any(found.keys() != labels.keys() for found in predicted):
        return None
    rows = [[found[name] for name in labels] for found in predicted]
    drawn = resampled(metric.metric, rows, list(labels.values()))
    return _difference(scores_M, first, drawn, examples=len(labels))


def _of_blocks(
    reports: Sequence[Report], scores_M: Floats, first: int, metric: Metric
) -> ResampledDifference | None:
    """Bits per byte, by blocks of the text that all results have; None if they do not."""
    if metric.metric not in BITS_PER_BYTE:
        return None
    try:
        found = [_BLOCKS.validate_python(report.get("blocks")) for report in reports]
    except ValidationError:
        return None
    sizes_DB = [np.array(sizes, np.float64) for sizes in found[0].bytes]
    counts = [len(sizes) for sizes in found[0].bytes]
    if not sum(counts) or any(
        one.bytes != found[0].bytes or [*map(len, one.nats)] != counts for one in found
    ):
        return None
    sides = [
        np.mean([np.concatenate(one.nats) for one in side], 0) for side in (found[:first], found[first:])
    ]
    bits_B = (sides[0] - sides[1]) / math.log(2)
    expected = scores_M[:first].mean() - scores_M[first:].mean()
    drawn = resampled_blocks(np.split(bits_B, np.cumsum(counts)[:-1]), sizes_DB)
    if drawn is None or not np.isclose(bits_B.sum() / np.concatenate(sizes_DB).sum(), expected, atol=1e-6):
        return None
    return ResampledDifference(*drawn)


def _difference(
    scores_M: Floats, first: int, drawn: tuple[Floats, Floats], *, examples: int
) -> ResampledDifference | None:
    """The first results minus the others; None if the resampled metric does not reproduce the scores."""
    whole_M, drawn_MR = drawn
    if not np.allclose(whole_M, scores_M, atol=1e-6):
        return None
    difference_R = drawn_MR[:first].mean(0) - drawn_MR[first:].mean(0)
    return ResampledDifference(np.asarray(difference_R, np.float64), examples)


def _facts_by_example(
    report: Report, fact: str, known: TypeAdapter[Mapping[str, Fact]]
) -> Mapping[str, Fact]:
    """A report's values for each example; {} if missing or malformed."""
    try:
        return known.validate_python(report.get(fact))
    except ValidationError:
        return {}


def _reads_alike(one: Report, other: Report, suite: str) -> bool:
    return all(one.get(fact) == other.get(fact) for fact in _SAME_READING.get(suite, ()))


def _of_task(report: Report, fact: str, task: str) -> Json:
    found = report.get(fact)
    return found.get(task) if isinstance(found, Mapping) else None


def _unlike_ids(own: set[str], others: set[str]) -> Iterator[str]:
    if own and others and own != others:
        phrases = [
            f"{min(missing)!r} is only {which}"
            for which, missing in (("here", own - others), ("in the baseline", others - own))
            if missing
        ]
        yield f"{len(own & others)} of {len(own)} and {len(others)} ids are shared ({'; '.join(phrases)})"


def _unlike(fact: str, own: Json, others: Json) -> str:
    if fact in ("texts", "requests"):
        return "their texts differ"
    if isinstance(own, Mapping) and isinstance(others, Mapping):
        name = next((key for key in own if own[key] != others.get(key)), None)
        if name is None:
            return f"{fact} of {len(own)} and {len(others)} examples"
        return f"{fact}: example {name!r} has {own[name]} here and {others.get(name)} in the baseline"
    return f"{fact}: {own} here, {others} in the baseline"
