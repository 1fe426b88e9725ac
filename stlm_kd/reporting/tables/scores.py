"""A table of the scores of several models side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.results_table import ResultsTable, SuiteScores
from stlm_kd.comparison.score_notes import addition, reading_notes, warning_notes
from stlm_kd.reporting.format import cell, noted_table, numbers, words


def score_table(results: Mapping[str, Sequence[SuiteResult]]) -> Table:
    """One row per task and metric, one column per model, and the chance level of choices.

    If models were scored on different numbers of examples, shows their range. Arrows give the direction of a
    metric. Below the table are the suites' notes, shared ones once, and the detectable differences.
    """
    suites = ResultsTable(scored_model(name, [found]) for name, found in results.items()).suites
    rows: dict[tuple[str, str, str, str], dict[str, Score]] = {}
    for suite in suites:
        for score in suite.requested:
            rows.setdefault((suite.suite, suite.label, score.task, score.metric), {})[suite.model] = score
    scores = [score for row in rows.values() for score in row.values()]
    chosen = any(score.choices or score.chance is not None for score in scores)
    headings = numbers("examples", *(("choices", "chance") if chosen else ()), *results)
    notes = [*_notes(suites, len(results)), *reading_notes(scores)]
    table = noted_table(notes, *words("task", "metric"), *headings)
    for (_, label, _, _), by_model in rows.items():
        first = next(iter(by_model.values()))
        examples = sorted({score.examples for score in by_model.values()})
        guessing = (
            "" if first.choices is None else str(first.choices),
            "" if first.chance is None else f"{first.chance:.3f}",
        )
        table.add_row(
            cell(first.task),
            cell(f"{first.metric}{f' ({label})' if label else ''} {'↑' if first.higher_is_better else '↓'}"),
            " to ".join(f"{count:,}" for count in dict.fromkeys([examples[0], examples[-1]])),
            *(guessing if chosen else ()),
            *(format_score(by_model[name]) if name in by_model else "" for name in results),
        )
    return table


def _notes(suites: Sequence[SuiteScores], num_models: int) -> Iterator[str]:
    """Each note once, with the models' names if not all share it."""
    models: dict[str, dict[str, None]] = {}
    for suite in suites:
        for note in (*suite.notes, *warning_notes(suite.requested)):
            models.setdefault(note, {})[suite.model] = None
    for note, names in models.items():
        yield from [note] if len(names) == num_models else (f"{name}: {note}" for name in names)


def format_score(score: Score) -> str:
    """The value with its standard error, and the suffix from ``addition``.

    >>> format_score(Score("t", "acc", 0.5, 0.0123, 100))
    '0.500 ± 0.012'
    """
    stderr = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{stderr}{addition(score)}"
