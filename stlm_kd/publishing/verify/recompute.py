"""Scores from the per-example values and facts that a result records, with the suites' own functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le
from pydantic import TypeAdapter, ValidationError

from stlm_kd.artifacts.results import LARGEST, Score, SuiteResult
from stlm_kd.errors import DataError
from stlm_kd.eval.agreement.suite import explained_in, scores_of_teacher
from stlm_kd.eval.classification.metrics import (
    classification_scores,
    mean_stderr,
    regression_scores,
)
from stlm_kd.eval.fine_tuning.entities import scores_of_counts
from stlm_kd.eval.interchange.suite import JUDGED
from stlm_kd.eval.language_modeling.likelihood import ScoredText, likelihood_result, ratio_stderr
from stlm_kd.eval.language_modeling.masked_loss import masked_scores

MEANS = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""The metrics of lm-eval that are means of per-example values."""

_MOST_CLASSES, _MOST_LOGITS = 1000, 50_000_000
_Size = Annotated[int, Ge(0), Le(2**50)]
_Class = Annotated[int, Ge(0), Le(_MOST_CLASSES)]
_Number = Annotated[float, Ge(-LARGEST), Le(LARGEST)]


@dataclass(frozen=True, slots=True)
class _Pieces:
    tokens: tuple[_Size, ...]
    bytes: tuple[_Size, ...]


@dataclass(frozen=True, slots=True)
class _Likelihood:
    """The report of ``perplexity`` and ``pseudo-perplexity``."""

    pieces: _Pieces


@dataclass(frozen=True, slots=True)
class _Windows:
    masked: tuple[_Size, ...]
    right: tuple[_Size, ...]


@dataclass(frozen=True, slots=True)
class _Masked:
    """The report of ``masked-loss``."""

    by_window: _Windows


@dataclass(frozen=True, slots=True)
class _Classes:
    """The report of classification."""

    confusion: tuple[tuple[_Size, ...], ...]
    predictions: Mapping[str, _Class]
    labels: Mapping[str, _Class]


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The report of regression."""

    predictions: Mapping[str, _Number]
    labels: Mapping[str, _Number]


@dataclass(frozen=True, slots=True)
class _Entities:
    """The report of ``ner``."""

    entities: Mapping[str, Mapping[str, tuple[_Size, _Size, _Size]]]
    told: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Harness:
    """The report of ``lm-eval``, as far as it is needed."""

    group_subtasks: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Counted:
    counts: Mapping[str, tuple[_Size, ...]]


_LIKELIHOOD: TypeAdapter[_Likelihood] = TypeAdapter(_Likelihood)
_MASKED: TypeAdapter[_Masked] = TypeAdapter(_Masked)
_CLASSES: TypeAdapter[_Classes] = TypeAdapter(_Classes)
_NUMBERS: TypeAdapter[_Numbers] = TypeAdapter(_Numbers)
_ENTITIES: TypeAdapter[_Entities] = TypeAdapter(_Entities)
_HARNESS: TypeAdapter[_Harness] = TypeAdapter(_Harness)
_COUNTED: TypeAdapter[_Counted] = TypeAdapter(_Counted)


def recomputed(result: SuiteResult) -> SuiteResult:
    """The scores that follow from a result's examples and report; its examples where they follow too.

    Scores that cannot be computed again are left out.

    Raises:
        DataError: The result does not record what is needed, or its parts contradict each other.
    """
    compute = _SUITES.get(result.suite)
    if compute is None:
        raise DataError("the suite's scores cannot be computed again")
    try:
        with np.errstate(all="ignore"):
            return compute(result)
    except (ArithmeticError, ValueError) as error:
        raise DataError(f"its values are not finite, or too large ({type(error).__name__})") from error


def values_of(result: SuiteResult, task: str, metric: str) -> dict[str, float]:
    """One metric of each example of a task, by id."""
    return {one.id: one.value for one in result.examples if one.task == task and one.metric == metric}


def _likelihood(result: SuiteResult) -> SuiteResult:
    prefix = "pseudo_" if result.suite == "pseudo-perplexity" else ""
    pieces = _read(_LIKELIHOOD, result).pieces
    values = values_of(result, "text", f"{prefix}bits_per_byte")
    _require_sizes(values, pieces.tokens, pieces.bytes)
    if not min(pieces.bytes, default=0) or not min(pieces.tokens, default=0):
        raise DataError("a piece of the text has no token or byte")
    texts = [
        ScoredText(value * math.log(2) * size, tokens, size)
        for value, tokens, size in zip(values.values(), pieces.tokens, pieces.bytes, strict=True)
    ]
    found = likelihood_result(
        result.suite,
        dict(enumerate(texts)),
        prefix=prefix,
        unknown=0,
        bytes_kept=1.0,
        degenerate=_degenerate(result),
        notes=(),
        report={},
    )
    return replace(found, examples=())


def _masked(result: SuiteResult) -> SuiteResult:
    windows = _read(_MASKED, result).by_window
    values = values_of(result, "text", "masked_loss")
    _require_sizes(values, windows.masked, windows.right)
    if not min(windows.masked, default=0):
        raise DataError("a window has no masked token")
    nats = [value * count for value, count in zip(values.values(), windows.masked, strict=True)]
    return SuiteResult(result.suite, masked_scores(nats, windows.right, windows.masked, _degenerate(result)))


def _classes(result: SuiteResult) -> SuiteResult:
    if "confusion" not in result.report:
        return _numbers(result)
    facts, task = _read(_CLASSES, result), _task(result)
    classes, names = len(facts.confusion), list(facts.predictions)
    _require_ids(facts.predictions, facts.labels)
    if max(*facts.predictions.values(), *facts.labels.values()) >= classes or classes < 2:
        raise DataError("a class is not in the table of confusions")
    if classes * len(names) > _MOST_LOGITS:
        raise DataError(f"{len(names):,} examples of {classes:,} classes are too many to compute again")
    logits_NC = np.eye(classes)[[facts.predictions[name] for name in names]]
    labels_N = [facts.labels[name] for name in names]
    found = classification_scores(logits_NC, labels_N, task=task, ids=names, suite=result.suite)
    if found.report["confusion"] != [[*row] for row in facts.confusion]:
        raise DataError("the table of confusions is not that of the predictions")
    return found


def _numbers(result: SuiteResult) -> SuiteResult:
    facts, task = _read(_NUMBERS, result), _task(result)
    _require_ids(facts.predictions, facts.labels)
    labels_N = [facts.labels[name] for name in facts.predictions]
    values = [*facts.predictions.values()]
    return regression_scores(values, labels_N, task=task, ids=[*facts.predictions], suite=result.suite)


def _entities(result: SuiteResult) -> SuiteResult:
    facts, task = _read(_ENTITIES, result), _task(result)
    _require_ids(facts.entities, facts.told)
    words_N = np.array([len(facts.told[name]) for name in facts.entities], np.float64)
    values = values_of(result, task, "accuracy")
    _require_ids(values, facts.entities)
    right_N = np.rint(words_N * [values[name] for name in facts.entities])
    return scores_of_counts(
        [*facts.entities.values()], words_N, right_N, task=task, ids=[*facts.entities], suite=result.suite
    )


def _answers(result: SuiteResult) -> SuiteResult:
    scores = [
        _mean(score, [*values_of(result, score.task, score.metric).values()]) for score in result.scores
    ]
    return replace(result, scores=tuple(scores), examples=())


def _harness(result: SuiteResult) -> SuiteResult:
    parts = _read(_HARNESS, result).group_subtasks
    values: dict[tuple[str, str], list[float]] = {}
    for one in result.examples:
        values.setdefault((one.task, one.metric), []).append(one.value)
    found = []
    for score in result.scores:
        leaves = _leaves(score.task, parts)
        per_leaf = [values.get((leaf, score.metric), []) for leaf in leaves]
        if score.metric in MEANS and all(per_leaf):
            alone = leaves == [score.task]
            found.append(_mean(score, per_leaf[0]) if alone else _group_mean(score, per_leaf))
    return replace(result, scores=tuple(found), examples=())


def _group_mean(score: Score, per_leaf: Sequence[Sequence[float]]) -> Score:
    """The mean over a group's tasks, weighted by size or not, whichever is nearer to the claim."""
    sizes = [len(values) for values in per_leaf]
    means = [fmean(values) for values in per_leaf]
    errors = [mean_stderr(np.asarray(values)) for values in per_leaf]
    weighted = sum(mean * size for mean, size in zip(means, sizes, strict=True)) / sum(sizes)
    value = min((weighted, fmean(means)), key=lambda one: abs(one - score.value))
    stderr, known = None, [one for one in errors if one is not None]
    if len(known) == len(errors):
        pooled = sum((n - 1) * n * e**2 for n, e in zip(sizes, known, strict=True)) / (
            sum(sizes) - len(sizes)
        )
        plain = math.sqrt(sum(e**2 for e in known)) / len(known)
        either = (math.sqrt(pooled / sum(sizes)), plain)
        stderr = min(either, key=lambda one: abs(one - (score.stderr or 0.0)))
    return replace(score, value=value, stderr=stderr, examples=sum(sizes))


def _agreement(result: SuiteResult) -> SuiteResult:
    names: Any = result.report.get("beside")
    if not isinstance(names, Mapping):
        raise DataError("it has no predictions of the teachers")
    try:
        found = [(name, explained_in(result, name, student="student")[0]) for name in names]
        both = [scores_of_teacher(name, one) for name, one in found]
    except (KeyError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise DataError(f"its predictions cannot be read ({type(error).__name__})") from error
    return SuiteResult(
        result.suite,
        tuple(score for scores, _ in both for score in scores),
        tuple(one for _, examples in both for one in examples),
    )


def _interchange(result: SuiteResult) -> SuiteResult:
    found = []
    for score in result.scores:
        if score.metric in JUDGED and score.part_of is None:
            try:
                counts = _COUNTED.validate_python(result.report.get(score.task)).counts.get(score.metric, ())
            except ValidationError as error:
                raise DataError("it lacks the counts of its rows") from error
            values = values_of(result, score.task, score.metric)
            _require_sizes(values, counts)
            if not min(counts, default=0):
                raise DataError("a row counts nothing")
            pairs = [(value * count, count) for value, count in zip(values.values(), counts, strict=True)]
            value = math.fsum(above for above, _ in pairs) / sum(counts)
            found.append(replace(score, value=value, stderr=ratio_stderr(pairs), examples=len(pairs)))
    return replace(result, scores=tuple(found), examples=())


_SUITES: Mapping[str, Callable[[SuiteResult], SuiteResult]] = {
    "agreement": _agreement,
    "classification": _classes,
    "glue": _classes,
    "interchange": _interchange,
    "lm-eval": _harness,
    "masked-loss": _masked,
    "ner": _entities,
    "perplexity": _likelihood,
    "pseudo-perplexity": _likelihood,
    "regression": _numbers,
    "squad": _answers,
}


COMPUTED = frozenset(_SUITES)
"""The suites whose scores are computed again."""


def _mean(score: Score, values: Sequence[float]) -> Score:
    """A score as the mean of some values, with its standard error."""
    if not values:
        raise DataError(f"{score.task} {score.metric} has no per-example values")
    return replace(score, value=fmean(values), stderr=mean_stderr(np.asarray(values)), examples=len(values))


def _leaves(task: str, parts: Mapping[str, Sequence[str]], depth: int = 0) -> list[str]:
    members = [part for part in parts.get(task, ()) if part != task]
    if depth > 8:
        raise DataError("its groups contain each other")
    return [leaf for part in members for leaf in _leaves(part, parts, depth + 1)] if members else [task]


def _read(kind: TypeAdapter[Any], result: SuiteResult) -> Any:
    try:
        return kind.validate_python(result.report)
    except ValidationError as error:
        place = ".".join(map(str, error.errors(include_url=False)[0]["loc"]))
        raise DataError(f"its report lacks what its scores follow from ({place})") from error


def _task(result: SuiteResult) -> str:
    return str(result.report.get("task"))


def _degenerate(result: SuiteResult) -> str | None:
    return next((score.degenerate for score in result.scores if score.degenerate), None)


def _require_sizes(values: Mapping[str, float], *others: Sequence[int]) -> None:
    if not values or any(len(other) != len(values) for other in others):
        counts = ", ".join(str(len(other)) for other in others)
        raise DataError(f"it has {len(values)} examples, and facts of {counts}")


def _require_ids(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    if not one or one.keys() != other.keys():
        raise DataError("its predictions and labels are of other examples")
