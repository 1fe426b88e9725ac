"""A table of the scores of several models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.comparison.metrics import averaged
from stlm_kd.comparison.score_notes import addition, reading_notes, warning_notes
from stlm_kd.reporting.format import noted_table


def score_table(results: Mapping[str, Sequence[SuiteResult]], *, parts: bool = False) -> Table:
    """One row per task and metric, one column per model, and the chance level of choices.

    If models were scored on different numbers of examples, shows their range. Arrows give the direction of a
    metric. Below the table are the suites' notes, shared ones once, and the detectable differences.

    Args:
        results: Name of a model → its results.
        parts: Whether to include the tasks of a group.
    """
    results = {name: averaged(suites) for name, suites in results.items()}
    rows = _rows_by_metric(results, parts)
    scores = [score for row in rows.values() for score in row.values()]
    table = noted_table([*_notes(results), *reading_notes(scores)])
    table.add_column("task")
    table.add_column("metric")
    table.add_column("examples", justify="right")
    chosen = any(score.choices or score.chance is not None for score in scores)
    for heading in ("choices", "chance") if chosen else ():
        table.add_column(heading, justify="right")
    for name in results:
        table.add_column(Text(name), justify="right")
    for (_, label, _, _), by_model in rows.items():
        first = next(iter(by_model.values()))
        examples = sorted({score.examples for score in by_model.values()})
        guessing = (
            "" if first.choices is None else str(first.choices),
            "" if first.chance is None else f"{first.chance:.3f}",
        )
        table.add_row(
            Text(f"  {first.task}" if first.part_of else first.task),
            Text(f"{first.metric}{f' ({label})' if label else ''} {'↑' if first.higher_is_better else '↓'}"),
            " to ".join(f"{count:,}" for count in dict.fromkeys([examples[0], examples[-1]])),
            *(guessing if chosen else ()),
            *(format_score(by_model[name]) if name in by_model else "" for name in results),
        )
    return table


def _notes(results: Mapping[str, Sequence[SuiteResult]]) -> list[str]:
    """Each note once, with the model's name if not all models share it."""
    models: dict[str, list[str]] = {}
    for name, suites in results.items():
        for note in dict.fromkeys(note for suite in suites for note in (*suite.notes, *_warnings(suite))):
            models.setdefault(note, []).append(name)
    return [
        note if len(names) == len(results) else f"{name}: {note}"
        for note, names in models.items()
        for name in (names if len(names) < len(results) else names[:1])
    ]


def _warnings(suite: SuiteResult) -> list[str]:
    return warning_notes([score for score in suite.scores if score.part_of is None])


def _rows_by_metric(
    results: Mapping[str, Sequence[SuiteResult]], parts: bool
) -> dict[tuple[str, str, str, str], dict[str, Score]]:
    rows: dict[tuple[str, str, str, str], dict[str, Score]] = {}
    for model, suites in results.items():
        for suite in suites:
            for score in suite.scores:
                if parts or score.part_of is None:
                    rows.setdefault((suite.suite, suite.label, score.task, score.metric), {})[model] = score
    return rows


def format_score(score: Score) -> str:
    """The value with its standard error, and the suffix from ``addition``.

    >>> format_score(Score("t", "acc", 0.5, 0.0123, 100))
    '0.500 ± 0.012'
    """
    stderr = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{stderr}{addition(score)}"
