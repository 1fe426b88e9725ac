"""Pairs the examples of two models by id, and refuses results on different examples.

Other recorded facts are checked too: the bytes of a text, the number of documents, labels, a hash of all
texts, the shots and version of a task. Two data sets whose examples are both numbered from 0 are therefore
not mistaken for one. Rows without ids are identified by their index, which pairs rows of the same file; it
pairs nothing if one result does not record its texts.

Shapes: M models (one for each seed and fine-tuning), N examples, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, TypeVar

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le, Lt
from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.results import LARGEST, Json, SuiteResult, measurable
from stlm_kd.comparison.metrics import BITS_PER_BYTE, Metric
from stlm_kd.comparison.resampling import (
    OF_CLASSES,
    OF_ENTITIES,
    OF_NUMBERS,
    resampled,
    resampled_blocks,
    resampled_entities,
)

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
    """A per-example metric of two rows' models on the same examples.

    Attributes:
        ids: The examples, N.
        first: For each model of the first row, (M, N).
        second: For each model of the second row, in the same order of examples.
        is_mean: Whether a model's score is the mean over these examples.
    """

    ids: tuple[str, ...]
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


def faults_of(here: Sequence[SuiteResult], baseline: Sequence[SuiteResult], metric: Metric) -> list[str]:
    """Differences between a row's examples and the baseline's, as text; [] if there are none."""
    return list(
        dict.fromkeys(
            fault for one, other in product(here, baseline) for fault in _faults(one, other, metric)
        )
    )


def _faults(one: SuiteResult, other: SuiteResult, metric: Metric) -> Iterator[str]:
    if _reads_alike(one, other):
        yield from _unlike_ids(_ids(one, metric), _ids(other, metric))
        counts = [result.score(metric.task, metric.metric).examples for result in (one, other)]
        if counts[0] != counts[1]:
            yield _unlike("examples", *counts)
    facts = {
        name: [result.report.get(name) for result in (one, other)]
        for name in (*_SAME_TEXT.get(one.suite, ()), "labels", "texts", "interventions")
    }
    for name in _OF_A_TASK:
        facts[name] = [_of_task(result, name, metric.task) for result in (one, other)]
    numbered = all(_are_places(_ids(result, metric)) for result in (one, other))
    for name, (own, others) in facts.items():
        if name == "texts" and own != others and numbered:
            yield _OTHER_TEXTS if own is not None and others is not None else _UNKNOWN_TEXTS
        elif own is not None and others is not None and own != others:
            yield _unlike(name, own, others)


def _are_places(ids: set[str]) -> bool:
    """Whether the ids are only row numbers."""
    return bool(ids) and ids == {str(place) for place in range(len(ids))}


def pair(first: Sequence[SuiteResult], second: Sequence[SuiteResult], metric: Metric) -> Pairing:
    """Pair the examples of two rows for which ``faults_of`` found no difference.

    Args:
        first: The results that contain the metric, one for each model.
        second: The same for the other row.
        metric: The metric to compare.
    """
    results = (*first, *second)
    if not all(_reads_alike(results[0], other) for other in results):
        if metric.metric in _PER_TOKEN:
            return NotPaired("their tokens differ, so scores per token differ in unit", is_comparable=False)
        return NotPaired("their tokens differ, so the windows of text differ", is_comparable=True)
    if (drawn := _of_blocks(results, len(first), metric)) is not None:
        return drawn
    values = [_values(result, metric) for result in results]
    ids = tuple(values[0])
    if len(ids) > 1 and all(found.keys() == values[0].keys() for found in values):
        rows = np.array([[found[name] for name in ids] for found in values])
        scores = [result.score(metric.task, metric.metric).value for result in results]
        is_mean = bool(np.allclose(rows.mean(1), scores, rtol=1e-6, atol=1e-9))
        return PairedExamples(ids, rows[: len(first)], rows[len(first) :], is_mean)
    return _resampled(first, second, metric) or NotPaired(
        "no results of several single examples", is_comparable=True
    )


def _resampled(
    first: Sequence[SuiteResult], second: Sequence[SuiteResult], metric: Metric
) -> ResampledDifference | None:
    """Resample the predictions and labels, or entities, in the reports; None if missing or inconsistent."""
    results = (*first, *second)
    if metric.metric in OF_ENTITIES:
        counts = [_facts_by_example(result, "entities", _ENTITIES) for result in results]
        names = [*counts[0]]
        if len(names) < 2 or any(found.keys() != counts[0].keys() for found in counts):
            return None
        drawn = resampled_entities(metric.metric, [[found[name] for name in names] for found in counts])
        return _difference(results, len(first), metric, drawn, examples=len(names))
    if metric.metric not in (*OF_CLASSES, *OF_NUMBERS):
        return None
    known = _CLASSES if metric.metric in OF_CLASSES else _NUMBERS
    labels = _facts_by_example(results[0], "labels", known)
    if len(labels) < 2:
        return None
    rows = []
    for result in results:
        predicted = _facts_by_example(result, "predictions", known)
        if predicted.keys() != labels.keys():
            return None
        rows.append([predicted[name] for name in labels])
    drawn = resampled(metric.metric, rows, list(labels.values()))
    return _difference(results, len(first), metric, drawn, examples=len(labels))


def _of_blocks(results: Sequence[SuiteResult], first: int, metric: Metric) -> ResampledDifference | None:
    """Bits per byte, by blocks of the text that all results have; None if they do not."""
    if metric.metric not in BITS_PER_BYTE:
        return None
    try:
        found = [_BLOCKS.validate_python(result.report.get("blocks")) for result in results]
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
    scores = [result.score(metric.task, metric.metric).value for result in results]
    expected = np.mean(scores[:first]) - np.mean(scores[first:])
    drawn = resampled_blocks(np.split(bits_B, np.cumsum(counts)[:-1]), sizes_DB)
    if drawn is None or not np.isclose(bits_B.sum() / np.concatenate(sizes_DB).sum(), expected, atol=1e-6):
        return None
    return ResampledDifference(*drawn)


def _difference(
    results: Sequence[SuiteResult],
    first: int,
    metric: Metric,
    drawn: tuple[Floats, Floats],
    *,
    examples: int,
) -> ResampledDifference | None:
    """The first results minus the others; None if the resampled metric does not reproduce the scores."""
    whole_M, drawn_MR = drawn
    scores = [result.score(metric.task, metric.metric).value for result in results]
    if not np.allclose(whole_M, scores, atol=1e-6):
        return None
    difference_R = drawn_MR[:first].mean(0) - drawn_MR[first:].mean(0)
    return ResampledDifference(np.asarray(difference_R, np.float64), examples)


def _facts_by_example(
    result: SuiteResult, fact: str, known: TypeAdapter[Mapping[str, Fact]]
) -> Mapping[str, Fact]:
    """A report's values for each example; {} if missing or malformed."""
    try:
        return known.validate_python(result.report.get(fact))
    except ValidationError:
        return {}


def _reads_alike(one: SuiteResult, other: SuiteResult) -> bool:
    return all(one.report.get(fact) == other.report.get(fact) for fact in _SAME_READING.get(one.suite, ()))


def _values(result: SuiteResult, metric: Metric) -> dict[str, float]:
    """The metric of each example by id, for a group those of its parts; {} if one is not finite."""
    leaves = set(_leaves(result, metric.task))
    found = {
        _name(row.task, row.id, metric): row.value
        for row in result.examples
        if row.task in leaves and row.metric == metric.metric
    }
    return found if all(map(measurable, found.values())) else {}


def _ids(result: SuiteResult, metric: Metric) -> set[str]:
    """All ids of the task's examples."""
    leaves = set(_leaves(result, metric.task))
    return {_name(row.task, row.id, metric) for row in result.examples if row.task in leaves}


def _name(task: str, example: str, metric: Metric) -> str:
    return example if task == metric.task else f"{task} {example}"


def _leaves(result: SuiteResult, task: str) -> list[str]:
    """The tasks of a group, or the task itself."""
    parts = dict.fromkeys(score.task for score in result.scores if score.part_of == task)
    return [leaf for part in parts for leaf in _leaves(result, part)] if parts else [task]


def _of_task(result: SuiteResult, fact: str, task: str) -> Json:
    found = result.report.get(fact)
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
