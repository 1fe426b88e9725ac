"""Averages several fine-tunings of one model into one result, for tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, variance

from stlm_kd.artifacts.results import Score, SuiteResult


def averaged(results: Sequence[SuiteResult]) -> list[SuiteResult]:
    """One result for each suite and label; several fine-tunings become their mean, without examples.

    The standard error of the mean combines the examples, which all fine-tunings share, and the variation
    between fine-tunings: the square root of the mean squared standard error plus the variance divided by the
    number of fine-tunings. A note says so. A single result is returned unchanged.
    """
    groups: dict[tuple[str, str], list[SuiteResult]] = {}
    for result in results:
        groups.setdefault((result.suite, result.label), []).append(result)
    return [found[0] if len(found) == 1 else _mean(found) for found in groups.values()]


def _mean(results: Sequence[SuiteResult]) -> SuiteResult:
    found: dict[tuple[str, str], list[Score]] = {}
    for result in results:
        for score in result.scores:
            found.setdefault((score.task, score.metric), []).append(score)
    most = max(map(len, found.values()))
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    if most > 1:
        notes.append(
            f"{results[0].suite}: means over {most} fine-tunings ± standard error over these and examples"
        )
    return SuiteResult(
        results[0].suite,
        tuple(_mean_score(scores) for scores in found.values()),
        notes=tuple(notes),
        label=results[0].label,
    )


def _mean_score(scores: Sequence[Score]) -> Score:
    values = [score.value for score in scores]
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    between = variance(values) / len(values) if len(values) > 1 else 0.0
    stderr = math.sqrt(fmean(squares) + between) if len(squares) == len(scores) else None
    degenerate = next((score.degenerate for score in scores if score.degenerate), None)
    return replace(scores[0], value=fmean(values), stderr=stderr, degenerate=degenerate)
