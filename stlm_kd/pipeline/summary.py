"""The notes below a run's table: student against controls, weak teachers, selection bias."""

from __future__ import annotations

from collections.abc import Mapping

from stlm_kd.comparison.compare import compare_pairs
from stlm_kd.comparison.metrics import MEASURES_TEXT, Metric, estimate
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.comparison.verdicts import Compared
from stlm_kd.eval import SUITES
from stlm_kd.pipeline.stages.score import suite_calls
from stlm_kd.recipe import Recipe


def weak_teachers(table: ResultsTable) -> list[str]:
    """A warning for each teacher that does not beat a student trained without it.

    The teachers used for distillation share the student's vocabulary, so losses per token are comparable.
    """
    controls = [row for row in table.rows if row.kind == "control"]
    teachers = [row for row in table.rows if row.teaches]
    metrics = _text_metrics(table)
    if teachers and controls and not metrics:
        suites = ", ".join(MEASURES_TEXT)
        return [f"whether the teachers are better than the controls is not known: eval has none of {suites}"]
    lines = []
    for row in teachers:
        for control in controls:
            for metric in metrics:
                own, other = table.values(row, metric), table.values(control, metric)
                if own and other and not _is_better(own[0], estimate(other).mean, metric):
                    lines.append(
                        f"warning: {row.name} ({own[0]:.4f} {metric.name}) is not better than "
                        f"{control.name} ({estimate(other).mean:.4f}); distillation is unlikely to help"
                    )
    return lines


def comparisons(table: ResultsTable) -> tuple[list[str], list[str]]:
    """The student against each control as in ``compare``, in words, and notes on these comparisons.

    The multiple-testing correction covers all comparisons made here.
    """
    students = [row for row in table.rows if row.kind == "student"]
    controls = [row for row in table.rows if row.kind == "control"]
    pairs = [
        (student, control, metric)
        for metric in table.metrics
        for student in students
        for control in controls
        if table.complete_values(student, metric) and table.complete_values(control, metric)
    ]
    found, notes = compare_pairs(table, pairs)
    count = sum(one.corrected_p is not None and not one.repeats for one in found)
    return [_against(one, count) for one in found], list(notes)


def selection_remark(recipe: Recipe) -> list[str]:
    """A note if the checkpoint was selected on the data that it is scored on."""
    reading = [call.suite for call in suite_calls(recipe) if SUITES[call.suite].reads_held_out(call.options)]
    if recipe.train.keep != "best" or not reading:
        return []
    return [
        f"train.keep: best selected the checkpoints of all rows trained here on the held-out data that "
        f"{', '.join(dict.fromkeys(reading))} scored: optimistic, unless other data confirm the scores"
    ]


def text_remark(tokens_by_domain: Mapping[str, int]) -> list[str]:
    """The number of training tokens per domain, if there are several domains."""
    if len(tokens_by_domain) < 2:
        return []
    parts = (f"{name} {tokens:,}" for name, tokens in tokens_by_domain.items())
    return [f"tokens of the student's text by domain: {', '.join(parts)}"]


def _against(one: Compared, count: int) -> str:
    text = f"{one.metric.name}: {one.name} - {one.baseline} = {one.evidence.mean:+.4f}"
    difference = one.evidence.difference
    if difference is not None:
        text += f" [{difference.low:+.4f}, {difference.high:+.4f}]"
    if one.p is None:
        return f"{text}: {one.words}"
    return (
        f"{text} (seeds: {one.seeds}; noise of {one.evidence.noise}; p {one.p:.3f}, corrected for {count} "
        f"comparisons): {one.words}"
    )


def _is_better(value: float, other: float, metric: Metric) -> bool:
    return value > other if metric.higher_is_better else value < other


def _text_metrics(table: ResultsTable) -> list[Metric]:
    """The metrics of language modelling on held-out text, from the first suite that measures it."""
    for suite, name in MEASURES_TEXT.items():
        found = [metric for metric in table.metrics if (metric.suite, metric.metric) == (suite, name)]
        if found:
            return found
    return []
