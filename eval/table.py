"""The scores of several models side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from stlm_kd.eval.averaging import averaged
from stlm_kd.eval.results import Score, SuiteResult


def score_table(results: Mapping[str, Sequence[SuiteResult]], *, parts: bool = False) -> Table:
    """One row per task and metric, one column per model, and the chance level where something is chosen.

    Where models were scored on different numbers of examples, the fewest and the most stand there. An arrow
    says which way a metric points. Below the table stand the notes of the suites, those of all models once,
    and the differences that these examples can show.

    Args:
        results: Name of a model → its results.
        parts: Also the tasks that a group is made of.
    """
    results = {name: averaged(suites) for name, suites in results.items()}
    rows = _rows(results, parts)
    scores = [score for row in rows.values() for score in row.values()]
    notes = [*_notes(results), *reading_notes(scores)]
    table = Table(caption=Text("\n".join(notes), "table.caption") if notes else None, caption_justify="left")
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
    """Each note once; with the model's name where it is not of all models."""
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


def warning_notes(scores: Iterable[Score]) -> list[str]:
    """Degenerate predictions by task, and metrics in which guessing is as good.

    Args:
        scores: Of one model, or of all seeds of a training, which have to be at chance in a metric alike.

    >>> warning_notes([Score("t", "acc", value, 0.1, 25, chance=0.5) for value in (0.6, 0.4)])
    ['t acc: not better than chance (0.500) within the 95% interval']
    >>> warning_notes([Score("t", "acc", value, 0.1, 25, chance=0.5) for value in (0.6, 0.8)])
    []
    """
    found: dict[str, None] = {}
    at_chance: dict[str, bool] = {}
    for score in scores:
        if score.degenerate:
            found[f"{score.task}: {score.degenerate}"] = None
        elif score.chance is not None:
            note = f"{score.task} {score.metric}: not better than chance ({score.chance:.3f})"
            at_chance[note] = at_chance.get(note, True) and score.is_at_chance
    return [*found, *(f"{note} within the 95% interval" for note, is_so in at_chance.items() if is_so)]


def reading_notes(scores: Iterable[Score]) -> list[str]:
    """How the numbers of a table are to be read: what brackets hold, and which differences are detectable.

    >>> reading_notes([Score("t", "acc", 0.5, 0.01, 100, chance=0.5)])[1]
    'detectable difference of two models (paired test, .05, power .8, independent errors): t acc 0.040'
    """
    found: dict[str, float] = {}
    centred = False
    for score in scores:
        centred = centred or score.centred is not None
        if score.detectable is not None:
            name = f"{score.task} {score.metric}"
            found[name] = max(found.get(name, 0.0), score.detectable)
    notes = ["in brackets: centred on chance, (score - chance) / (1 - chance)"] if centred else []
    if found:
        listed = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
        what = "paired test, .05, power .8, independent errors"
        notes.append(f"detectable difference of two models ({what}): {listed}")
    return notes


def _rows(
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
    """The value with its standard error, and what ``addition`` says of it.

    >>> format_score(Score("t", "acc", 0.5, 0.0123, 100))
    '0.500 ± 0.012'
    """
    stderr = "" if score.stderr is None else f" ± {score.stderr:.3f}"
    return f"{score.value:.3f}{stderr}{addition(score)}"


def addition(score: Score) -> str:
    """What stands beside a score: centred on chance, and whether it tells no examples apart.

    >>> addition(Score("t", "acc", 0.5, None, 100, chance=0.25, degenerate="degenerate: all choices tie"))
    ' (+0.333) degenerate'
    """
    centred = "" if score.centred is None else f" ({score.centred:+.3f})"
    return f"{centred}{' degenerate' if score.degenerate else ''}"
