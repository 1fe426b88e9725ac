"""A comparison as tables for display, and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from statistics import stdev
from typing import Any

from rich.table import Table

from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.compare import Comparison
from stlm_kd.comparison.metrics import Metric, estimate
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.comparison.verdicts import Compared
from stlm_kd.reporting.format import UNKNOWN, cell, count, interval, noted_table, numbers, words
from stlm_kd.statistics import CONFIDENCE, deviations_wide

ENOUGH_SEEDS = 5
"""With fewer seeds, the table notes the width of the interval."""


def means_table(comparison: Comparison) -> Table:
    """Means over seeds with interval and deviation, or single models' scores; shared rows appear once."""
    headings = numbers("seeds", *(metric.label for metric in comparison.metrics))
    table = noted_table(_caption(comparison), *words("model"), *headings)
    hidden = _shared_teachers(comparison)
    for one in comparison.table.rows:
        if one.name in hidden:
            continue
        name = f"{one.name} (baseline)" if one.name == comparison.baseline else one.name
        cells = (cell(_cell(comparison.table, one, metric)) for metric in comparison.metrics)
        table.add_row(cell(name), str(len(one.seeds) or UNKNOWN), *cells)
    return table


def differences_table(comparison: Comparison) -> Table:
    """The distinct comparisons with the baseline and their verdicts, with notes below."""
    smallest = {one.metric.name: f"{one.smallest:g}" for one in comparison.differences}
    num_compared = sum(one.corrected_p is not None and not one.repeats for one in comparison.differences)
    repeats = {one.name: one.repeats for one in comparison.differences if one.repeats}
    hidden = _shared_teachers(comparison)
    lines = [
        f"[…]: {CONFIDENCE:.0%} interval, before correction; corrected p: of the verdict's claim, for "
        f"{num_compared} comparisons (Holm, Shaffer S2), significant below {1 - CONFIDENCE:.2f}",
        "better, worse: by at least the smallest difference that matters; equivalent: by less (two one-sided "
        f"tests); smallest (--smallest): {', '.join(map(' '.join, smallest.items()))}",
        "p: uncorrected, including the noise listed; McNemar p: mid-p, range over seeds",
        *(
            f"{name}: the same results as {other}, and {'shown and ' if name in hidden else ''}counted once"
            for name, other in repeats.items()
        ),
        *comparison.notes,
    ]
    table = noted_table(
        lines,
        *words("metric", f"model - {comparison.baseline}"),
        *numbers("difference"),
        *words("verdict"),
        *numbers("corrected p", "p", "McNemar p"),
        *words("seeds", "examples", "noise of"),
    )
    for metric in comparison.metrics:
        for one in comparison.differences:
            if one.metric == metric and one.name not in hidden:
                table.add_row(*map(cell, _row(one)))
    return table


def _shared_teachers(comparison: Comparison) -> set[str]:
    """Teachers identical to another row in every metric: each run that shares a teacher has a row for it."""
    teachers = {one.name for one in comparison.table.rows if one.kind == "teacher"}
    repeating = {one.name for one in comparison.differences if one.repeats}
    return (teachers & repeating) - {one.name for one in comparison.differences if not one.repeats}


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Everything except per-example results, ready for ``json.dumps``."""
    return {
        "baseline": comparison.baseline,
        "rows": [
            {
                "name": one.name,
                "source": one.source,
                "kind": one.kind,
                "variant": one.variant,
                "seeds": list(one.seeds),
                "scores": {
                    metric.name: _summary(comparison.table, one, metric)
                    for metric in comparison.metrics
                    if comparison.table.complete_values(one, metric)
                },
            }
            for one in comparison.table.rows
        ],
        "comparisons": [
            {
                "name": one.name,
                "suite": one.metric.suite,
                "metric": one.metric.name,
                "higher_is_better": one.metric.higher_is_better,
                "seeds": one.seeds,
                **asdict(one.evidence),
                "smallest": one.smallest,
                "repeats": one.repeats,
                "corrected_p": one.corrected_p,
                "corrected_equivalence_p": one.equivalence_p,
                "verdict": one.verdict,
                "limits": [limit for limit in (one.limit, *one.scope) if limit],
            }
            for one in comparison.differences
        ],
        "notes": list(comparison.notes),
    }


def _summary(table: ResultsTable, row: Row, metric: Metric) -> dict[str, Any]:
    values = table.complete_values(row, metric)
    if not all(map(measurable, values)):
        return {"values": [value if measurable(value) else str(value) for value in values]}
    found = estimate(values)
    return {
        "mean": found.mean,
        "deviation": stdev(values) if len(values) > 1 else None,
        "half_width": found.half_width,
        "stderr_of_first": table.scores_of(row, metric)[0].stderr,
        "values": values,
    }


def _cell(table: ResultsTable, row: Row, metric: Metric) -> str:
    """A mean with its interval and deviation over seeds; a single model's score with its standard error."""
    values = table.complete_values(row, metric)
    if not values:
        return ""
    if not all(map(measurable, values)):
        return "not finite"
    if len(values) > 1:
        return f"{estimate(values)} (sd {stdev(values):.4f})"
    stderr = table.scores_of(row, metric)[0].stderr
    return f"{values[0]:.4f}" + ("" if stderr is None else f" (se {stderr:.4f})")


def _caption(comparison: Comparison) -> list[str]:
    counts = sorted({len(one.scores) for one in comparison.table.rows})
    lines = []
    if counts[-1] > 1:
        lines.append(f"±: {CONFIDENCE:.0%} interval of the mean over seeds (Student's t); sd: over seeds")
    if counts[0] == 1:
        lines.append(
            "se: a single model's standard error over examples, and over its fine-tunings if there are "
            "several; it does not cover other seeds"
        )
    wide = [
        f"{count} seeds is {deviations_wide(count):.2f} sd either way"
        for count in counts
        if 1 < count < ENOUGH_SEEDS
    ]
    if wide:
        lines.append(
            f"few seeds: the interval over {', over '.join(wide)}; over {ENOUGH_SEEDS} it would be "
            f"{deviations_wide(ENOUGH_SEEDS):.2f}, over 10 {deviations_wide(10):.2f}"
        )
    return lines


def _row(one: Compared) -> list[str]:
    evidence, difference = one.evidence, one.evidence.difference
    shown = f"{evidence.mean:+.4f}"
    if difference is not None:
        shown += f" {interval(difference.low, difference.high, '+.4f')}"
    tests = sorted(test.p for test in evidence.mcnemar)
    return [
        one.metric.label,
        one.name,
        shown,
        one.words,
        _p(one.p),
        _p(difference.p if difference else None),
        " to ".join(dict.fromkeys(_p(p) for p in (tests[0], tests[-1]))) if tests else "",
        one.seeds,
        count(evidence.num_examples or None),
        evidence.noise,
    ]


def _p(value: float | None) -> str:
    """A p-value for display.

    >>> [_p(p) for p in (0.0312, 0.00001, None)]
    ['.031', '<.001', '—']
    """
    if value is None:
        return UNKNOWN
    return "<.001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
