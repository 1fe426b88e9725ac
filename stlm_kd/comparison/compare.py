"""The command ``compare``: tests which models differ from a baseline."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike, fspath

from stlm_kd.artifacts.results import Row, measurable
from stlm_kd.comparison.difference import Sample, difference_between, sample_of
from stlm_kd.comparison.entries import read_rows
from stlm_kd.comparison.metrics import Metric, all_results, complete_values, metrics_of
from stlm_kd.comparison.pairing import NotPaired, PairedExamples, Pairing, ResampledDifference, pair
from stlm_kd.comparison.requirements import (
    Lossy,
    lossy_fault,
    require_lossless,
    require_same_examples,
    require_shared_tasks,
)
from stlm_kd.comparison.resampling import ENOUGH_DOCUMENTS
from stlm_kd.comparison.score_notes import warning_notes
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.comparison.verdicts import Compared, scope_of, unknown_noise, with_verdicts
from stlm_kd.errors import DataError, UsageError, did_you_mean, listed

DEFAULT_SMALLEST = Smallest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, their metrics, their differences from the baseline, and notes on how to read them."""

    rows: tuple[Row, ...]
    metrics: tuple[Metric, ...]
    baseline: str
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]


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
        sources: Runs, their folders, or JSON files written by ``stlm-kd eval --output``.
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
    """Compare rows that were already read; see ``compare``.

    Raises:
        UsageError: No row has such a metric.
        DataError: See ``compare``.
    """
    known = metrics_of(rows)
    smallest.require_known(_names(known))
    metrics = _chosen(known, only)
    pairs = [
        (other, metric)
        for other in rows
        if other is not base
        for metric in metrics
        if complete_values(other, metric) and complete_values(base, metric)
    ]
    require_shared_tasks(rows, base, {other.source for other, _ in pairs})
    require_same_examples(pairs, base)
    found, notes = compare_pairs(
        [(other, base, metric) for other, metric in pairs], smallest=smallest, lossy=lossy
    )
    if not found:
        raise DataError("\n".join([f"nothing can be compared with {base.name}:", *notes]))
    notes = (*notes, *_notes_of_results(rows, metrics))
    return Comparison(tuple(rows), tuple(metrics), base.name, found, notes)


def compare_pairs(
    pairs: Sequence[tuple[Row, Row, Metric]],
    *,
    smallest: Smallest = DEFAULT_SMALLEST,
    lossy: Lossy = "leave out",
) -> tuple[tuple[Compared, ...], tuple[str, ...]]:
    """Compare the two rows of each pair, corrected for all pairs; also returns notes.

    Both rows were scored on the same examples. A metric that is not comparable within a pair is skipped,
    with a note.

    Raises:
        DataError: A tokenizer is lossy and ``lossy`` is "refuse".
    """
    if lossy == "refuse":
        require_lossless(pairs)
    notes: dict[str, None] = {}
    found: list[Compared] = []
    sides: list[tuple[Metric, Sample, Sample]] = []
    for other, base, metric in pairs:
        one = _compared(other, base, metric, notes, smallest=smallest.of(metric), lossy=lossy)
        if one is not None:
            found.append(one)
            sides.append((metric, sample_of(other, metric), sample_of(base, metric)))
    firsts = [sides.index(one) for one in sides]
    for place, first in enumerate(firsts):
        if first != place:
            found[place] = replace(found[place], repeats=found[first].name)
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


def _notes_of_results(rows: Sequence[Row], metrics: Sequence[Metric]) -> Iterator[str]:
    """Notes of the compared results, degenerate models and chance, naming the rows if not all share them."""
    names: dict[str, dict[str, None]] = {}
    for row, metric in product(rows, metrics):
        results = all_results(row, metric)
        warnings = warning_notes(result.score(metric.task, metric.metric) for result in results)
        for note in (*(note for result in results for note in result.notes), *warnings):
            names.setdefault(note, {})[row.name] = None
    for note, own in names.items():
        yield note if len(own) == len(rows) else f"{', '.join(own)}: {note}"


def _compared(
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
    first, second = (sample_of(one, metric, shared if are_paired else None) for one in (other, base))
    label = metric.name
    if not all(map(measurable, (*first.values, *second.values))):
        notes[f"{label}: {other.name} or {base.name} has a score that is not finite"] = None
        return None
    if lossy != "allow" and (fault := lossy_fault(other, base, metric)):
        notes[f"{label}: {other.name} and {base.name} are not compared: {fault}"] = None
        return None
    joined = pair(first.results, second.results, metric)
    if isinstance(joined, NotPaired) and not joined.is_comparable:
        notes[
            f"{label}: {other.name} and {base.name} are not compared: {joined.reason}; bits per byte compare "
            "(--suite perplexity, or pseudo-perplexity for masked models)"
        ] = None
        return None
    notes.update(
        dict.fromkeys(_notes(other, base, metric, joined, paired=len(shared) if are_paired else None))
    )
    found = difference_between(first, second, joined, metric, are_paired=are_paired, smallest=smallest)
    return Compared(
        name=other.name,
        baseline=base.name,
        metric=metric,
        seeds=f"{len(shared)} paired" if are_paired else _seed_counts(other, base),
        evidence=found,
        smallest=smallest,
        scope=tuple(scope_of(other, base, (*first.results, *second.results), joined)),
        limit=unknown_noise([(other, first), (base, second)], found),
    )


def _notes(
    other: Row,
    base: Row,
    metric: Metric,
    joined: Pairing,
    *,
    paired: int | None,
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
    results = {row.name: all_results(row, metric) for row in (other, base)}
    if len({str(result.report.get("window")) for own in results.values() for result in own}) > 1:
        yield f"{label}: models use windows of different lengths"
    for row in (other, base):
        if len(row.scores) == 1 and row.seeds:
            yield f"{row.name} has one seed: variation over seeds is not included"
        if len(tuned := results[row.name]) == 1 and "fine_tuning" in tuned[0].report:
            yield f"{row.name} was fine-tuned once: variation over fine-tunings is not included"
        if paired is not None and paired < len(row.seeds):
            yield f"{row.name}: differences are over the {paired} seeds that both have"


def _seed_counts(other: Row, base: Row) -> str:
    counts = [len(one.seeds) for one in (other, base)]
    return " and ".join(str(count) if count else "—" for count in counts) if any(counts) else "—"
