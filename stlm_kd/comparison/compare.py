"""The command ``compare``: tests which models differ from a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from os import PathLike, fspath

import pandas as pd

from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.difference import difference_between, sample_of
from stlm_kd.comparison.entries import read_rows
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.pairing import NotPaired, PairedExamples, Pairing, ResampledDifference, pair
from stlm_kd.comparison.requirements import (
    Lossy,
    lossy_fault,
    require_lossless,
    require_same_examples,
    require_shared_tasks,
)
from stlm_kd.comparison.resampling import ENOUGH_DOCUMENTS
from stlm_kd.comparison.results_table import ResultsTable, scores_in
from stlm_kd.comparison.score_notes import warning_notes
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.comparison.verdicts import Compared, scope_of, unknown_noise, with_verdicts
from stlm_kd.errors import DataError, UsageError, did_you_mean, inline_markdown, listed

DEFAULT_SMALLEST = Smallest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of some rows from a baseline.

    Attributes:
        table: The scores of all rows.
        metrics: The compared metrics.
        baseline: The name of the baseline row.
        differences: Each row minus the baseline in each metric, with its evidence and verdict.
        notes: How to read them.
    """

    table: ResultsTable
    metrics: tuple[Metric, ...]
    baseline: str
    differences: tuple[Compared, ...]
    notes: tuple[str, ...]

    @property
    def verdicts(self) -> pd.DataFrame:
        """One line for each difference.

        Columns: ``model``, ``metric``, ``difference`` (the model minus the baseline) with its 95 % interval
        ``low`` to ``high`` before correction, ``corrected_p`` of the verdict's claim, ``verdict`` with its
        limits. What is unknown is missing.
        """
        lines = []
        for one in self.differences:
            known = one.evidence.difference
            interval = (None, None) if known is None else (known.low, known.high)
            lines.append((one.name, one.metric.name, one.evidence.mean, *interval, one.p, one.words))
        columns = ["model", "metric", "difference", "low", "high", "corrected_p", "verdict"]
        return pd.DataFrame(lines, columns=columns)

    def to_markdown(self) -> str:
        """The verdicts as a Markdown table, with four decimals, and the notes below it.

        >>> from stlm_kd.comparison.entries import scored_model
        >>> from stlm_kd.artifacts.results import Score, SuiteResult
        >>> models = {"a": 0.5, "b": 0.75}
        >>> scores = {name: SuiteResult("s", (Score("t", "acc", v, 0.05, 99),)) for name, v in models.items()}
        >>> a, b = (scored_model(name, [[result]]) for name, result in scores.items())
        >>> print(compare_with(a, [a, b]).to_markdown().splitlines()[2])
        | b | t acc | 0.2500 | 0.1114 | 0.3886 | 0.0004 | better (of these two models) |
        """
        found = self.verdicts.rename(columns={"model": f"model - {self.baseline}"})
        lines = [[*found], ["---"] * len(found.columns), *found.itertuples(index=False)]
        table = [f"| {' | '.join(map(_markdown, line))} |" for line in lines]
        return "\n".join([*table, "", *(f"- {note}" for note in self.notes)])


def compare(
    sources: Sequence[str | PathLike[str]],
    *,
    baseline: str | None = None,
    only: Collection[str] = (),
    smallest: Smallest = DEFAULT_SMALLEST,
    lossy: Lossy = "refuse",
) -> Comparison:
    """Compare all rows of runs and score files with a baseline.

    Args:
        sources: Runs or their folders, or JSON files written by ``stlm-kd eval --output``.
        baseline: Name of a row, or a variant that only one row has. Default: the first run's control
            (``no-teacher`` if there is one), or its student if that has no teachers; then the same for the
            next run; then the first student or model.
        only: Metrics such as ``accuracy`` or ``blimp acc``; default: all. The correction covers all
            comparisons that are made, so fewer metrics give more power.
        smallest: The smallest difference that matters in each metric.
        lossy: How to handle bits per byte if a tokenizer loses part of the text.

    Raises:
        UsageError: A source is given twice, a baseline or metric does not exist, or there is only one row.
        MissingResourceError, CheckpointError: See ``read_rows``.
        DataError: The examples differ, no metric is comparable, or a tokenizer is lossy; the message says
            what differs.
    """
    names = [fspath(source) for source in sources]
    rows = read_rows(names)
    if len(rows) < 2:
        found = f"one row ({rows[0].name})" if rows else "nothing"
        raise UsageError(f"{', '.join(names) or 'compare'}: {found}; name a second to compare")
    return compare_with(_baseline(rows, baseline), rows, only=only, smallest=smallest, lossy=lossy)


def compare_with(
    base: Row,
    rows: Sequence[Row],
    *,
    only: Collection[str] = (),
    smallest: Smallest = DEFAULT_SMALLEST,
    lossy: Lossy = "leave out",
) -> Comparison:
    """Compare rows that were already read; see ``compare``, also for the errors."""
    table = ResultsTable(rows)
    smallest.require_known(_names(table.metrics))
    metrics = _chosen(table.metrics, only)
    pairs = [
        (other, metric)
        for other in rows
        if other is not base
        for metric in metrics
        if table.complete_values(other, metric) and table.complete_values(base, metric)
    ]
    require_shared_tasks(table, base, {other.source for other, _ in pairs})
    require_same_examples(table, pairs, base)
    found, notes = compare_pairs(
        table, [(other, base, metric) for other, metric in pairs], smallest=smallest, lossy=lossy
    )
    if not found:
        raise DataError("\n".join([f"nothing can be compared with {base.name}:", *notes]))
    notes = (*notes, *_notes_of_results(table, metrics))
    return Comparison(table, tuple(metrics), base.name, found, notes)


def compare_pairs(
    table: ResultsTable,
    pairs: Sequence[tuple[Row, Row, Metric]],
    *,
    smallest: Smallest = DEFAULT_SMALLEST,
    lossy: Lossy = "leave out",
) -> tuple[tuple[Compared, ...], tuple[str, ...]]:
    """Compare the two rows of each pair, corrected for all pairs; also returns notes.

    Both rows were scored on the same examples. A metric that is not comparable within a pair is skipped, with
    a note. Raises ``DataError`` if a tokenizer is lossy and ``lossy`` is "refuse".
    """
    if lossy == "refuse":
        require_lossless(table, pairs)
    notes: dict[str, None] = {}
    found: list[Compared] = []
    firsts: list[int] = []
    by_content: dict[object, int] = {}
    for other, base, metric in pairs:
        one = _compared(table, other, base, metric, notes, smallest=smallest.of(metric), lossy=lossy)
        if one is not None:
            sides = (sample_of(table, row, metric) for row in (other, base))
            content = (metric, *((side.values, *side.results["content"]) for side in sides))
            first = by_content.setdefault(content, len(found))
            found.append(one if first == len(found) else replace(one, repeats=found[first].name))
            firsts.append(first)
    return with_verdicts(found, firsts), tuple(notes)


def _baseline(rows: Sequence[Row], name: str | None) -> Row:
    if name is not None:
        named = [row for row in rows if row.name == name]
        named = named or [row for row in rows if name in (row.variant, row.source)]
        if len(named) != 1:
            known = [row.name for row in named or rows]
            what = f"several rows; give one of: {listed(known)}"
            raise UsageError(
                f"--baseline {name}: {what if named else f'no such row{did_you_mean(name, known)}'}"
            )
        return named[0]
    for source in dict.fromkeys(row.source for row in rows):
        own = [row for row in rows if row.source == source]
        controls = [row for row in own if row.kind == "control"]
        controls.sort(key=lambda row: row.variant != "no-teacher")
        untaught = [row for row in own if row.kind == "student" and not row.taught]
        if controls or untaught:
            return (controls + untaught)[0]
    return next((row for row in rows if row.kind in ("student", "model")), rows[0])


def _chosen(metrics: Sequence[Metric], names: Collection[str]) -> list[Metric]:
    known = _names(metrics)
    for name in names:
        if name not in known:
            raise UsageError(f"--metric {name}: no run or file has it{did_you_mean(name, known)}")
    return [one for one in metrics if not names or {one.name, one.metric} & set(names)]


def _names(metrics: Sequence[Metric]) -> set[str]:
    return {name for metric in metrics for name in (metric.name, metric.metric)}


def _notes_of_results(table: ResultsTable, metrics: Collection[Metric]) -> Iterator[str]:
    """Notes of the compared results, degenerate models and chance, naming the rows if not all share them."""
    names: dict[str, dict[str, None]] = {}
    for row, metric in product(table.rows, metrics):
        found = table.results_of(row, metric)
        for note in (*chain.from_iterable(found["notes"]), *warning_notes(scores_in(found))):
            names.setdefault(note, {})[row.name] = None
    for note, own in names.items():
        yield note if len(own) == len(table.rows) else f"{', '.join(own)}: {note}"


def _compared(
    table: ResultsTable,
    other: Row,
    base: Row,
    metric: Metric,
    notes: dict[str, None],
    *,
    smallest: float,
    lossy: Lossy,
) -> Compared | None:
    """One comparison before correction; None, with a note, if the metric is not comparable."""
    shared = [seed for seed in other.seeds if seed in base.seeds]
    are_paired = len(shared) > 1 or (shared != [] and len(other.scores) == len(base.scores) == 1)
    first, second = (sample_of(table, one, metric, shared if are_paired else None) for one in (other, base))
    label = metric.name
    if not all(map(measurable, (*first.values, *second.values))):
        notes[f"{label}: {other.name} or {base.name} has a score that is not finite"] = None
        return None
    if lossy != "allow" and (fault := lossy_fault(table, other, base, metric)):
        notes[f"{label}: {other.name} and {base.name} are not compared: {fault}"] = None
        return None
    joined = pair(table, first.results, second.results, metric)
    if isinstance(joined, NotPaired) and not joined.is_comparable:
        notes[
            f"{label}: {other.name} and {base.name} are not compared: {joined.reason}; bits per byte compare "
            "(--suite perplexity, or pseudo-perplexity for masked models)"
        ] = None
        return None
    paired = len(shared) if are_paired else None
    notes.update(dict.fromkeys(_notes(table, other, base, metric, joined, paired=paired)))
    found = difference_between(first, second, joined, are_paired=are_paired, smallest=smallest)
    reports = [*first.results["report"], *second.results["report"]]
    return Compared(
        name=other.name,
        baseline=base.name,
        metric=metric,
        seeds=f"{len(shared)} paired" if are_paired else _seed_counts(other, base),
        evidence=found,
        smallest=smallest,
        scope=tuple(scope_of(other, base, reports, joined)),
        limit=unknown_noise([(other, first), (base, second)], found),
    )


def _notes(
    table: ResultsTable, other: Row, base: Row, metric: Metric, joined: Pairing, *, paired: int | None
) -> Iterator[str]:
    """Notes on how to read this comparison; ``paired``: the number of shared seeds."""
    label = metric.name
    if isinstance(joined, NotPaired):
        yield (
            f"{label}: where examples are not paired ({joined.reason}), errors are treated as independent if "
            "standard errors are known, which makes intervals too wide"
        )
    elif isinstance(joined, ResampledDifference) and joined.within:
        yield (
            f"{label}: with fewer than {ENOUGH_DOCUMENTS} documents ({joined.within}), stretches of text are "
            "resampled within each; the column examples counts them (the more alike two models are on "
            "neighbouring text, the longer and fewer); verdicts apply to these documents, not to similar ones"
        )
    elif isinstance(joined, PairedExamples) and not joined.is_mean:
        yield f"{label}: standard error over equally weighted examples"
    reports = {row.name: [*table.results_of(row, metric)["report"]] for row in (other, base)}
    if len({str(report.get("window")) for own in reports.values() for report in own}) > 1:
        yield f"{label}: models use windows of different lengths"
    for row in (other, base):
        if len(row.scores) == 1 and row.seeds:
            yield f"{row.name} has one seed: variation over seeds is not included"
        if len(tuned := reports[row.name]) == 1 and "fine_tuning" in tuned[0]:
            yield f"{row.name} was fine-tuned once: variation over fine-tunings is not included"
        if paired is not None and paired < len(row.seeds):
            yield f"{row.name}: differences are over the {paired} seeds that both have"


def _seed_counts(other: Row, base: Row) -> str:
    counts = [len(one.seeds) for one in (other, base)]
    return " and ".join(str(count) if count else "—" for count in counts) if any(counts) else "—"


def _markdown(cell: object) -> str:
    """A cell of a Markdown table; missing numbers are dashes."""
    text = "—" if cell is None or cell != cell else f"{cell:.4f}" if isinstance(cell, float) else cell
    return inline_markdown(text)
