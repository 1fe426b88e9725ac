"""The command ``compare``: which of several models are better than one of them, and which only seem so."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stlm_kd.errors import DataError, UsageError, did_you_mean
from stlm_kd.eval.results import measurable
from stlm_kd.eval.statistics import CONFIDENCE, holm
from stlm_kd.run.contenders import Contender, metrics_of, read_contenders
from stlm_kd.run.differing import Evidence, Side, difference_between
from stlm_kd.run.joining import Apart, Joined, Resampled, faults_of, join
from stlm_kd.run.results import Metric

Verdict = Literal["better", "worse", "within noise", "not known"]

_OF_TEXT = {"perplexity", "pseudo-perplexity", "masked-loss"}
_BETWEEN_TOKENIZERS = ". Between tokenizers, bits per byte compare (--suite perplexity, pseudo-perplexity)"


@dataclass(frozen=True, slots=True)
class Compared:
    """One row against the baseline in one metric.

    Attributes:
        name: The row's name.
        baseline: That of the row that it is compared with.
        metric: Which.
        seeds: How many, and whether they are paired.
        evidence: The row minus the baseline, before correction.
        corrected_p: After Holm's correction for all comparisons of the table, each counted once.
        repeats: The row before it whose comparison in this metric is the same, result by result, as where
            runs share a teacher; "" of most.
        verdict: ``better`` or ``worse`` where the corrected p is below .05, by which way the metric points;
            ``not known`` where nothing tells how large the noise is.
    """

    name: str
    baseline: str
    metric: Metric
    seeds: str
    evidence: Evidence
    repeats: str = ""
    corrected_p: float | None = None
    verdict: Verdict = "not known"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All rows, their metrics, how each differs from the baseline, and what a reader must know."""

    contenders: tuple[Contender, ...]
    metrics: tuple[Metric, ...]
    baseline: str
    compared: tuple[Compared, ...]
    notes: tuple[str, ...]


def compare(sources: Sequence[str], *, baseline: str | None = None, only: Collection[str] = ()) -> Comparison:
    """All rows of runs and files of scores against one of them.

    Args:
        sources: Run folders, or JSON files that ``stlm-kd eval --output`` wrote.
        baseline: A row by its name, or its variant where one row alone has it. By default the first run's
            control (``no-teacher`` if there is one), or its student if that has no teachers; then the next
            run's; then whatever student or model comes first.
        only: Metrics, as ``accuracy`` or ``blimp acc``; by default all that there are. The correction is for
            all comparisons that are made, so that asking for fewer finds more.

    Raises:
        UsageError: A source given twice, a baseline or metric that is not there, or nothing to compare with.
        EnvironmentFault, CheckpointError: As ``read_contenders``.
        DataError: Results of other examples, or of which none compares; the message says what differs.
    """
    contenders = read_contenders(sources)
    if len(contenders) < 2:
        raise UsageError(f"{', '.join(sources)}: one row ({contenders[0].name}); name a second to compare")
    return compare_with(_baseline(contenders, baseline), contenders, only=only)


def compare_with(
    base: Contender, contenders: Sequence[Contender], *, only: Collection[str] = ()
) -> Comparison:
    """As ``compare``, of rows that were read.

    Raises:
        UsageError: No row has such a metric.
        DataError: As ``compare``.
    """
    metrics = _chosen(metrics_of(contenders), only)
    pairs = [
        (other, metric)
        for other in contenders
        if other is not base
        for metric in metrics
        if other.values(metric) and base.values(metric)
    ]
    _require_shared_tasks(contenders, base, {other.source for other, _ in pairs})
    _require_same_examples(pairs, base)
    found, notes = compare_pairs([(other, base, metric) for other, metric in pairs])
    if not found:
        raise DataError("\n".join([f"nothing can be compared with {base.name}:", *notes]))
    return Comparison(tuple(contenders), tuple(metrics), base.name, found, notes)


def compare_pairs(
    pairs: Sequence[tuple[Contender, Contender, Metric]],
) -> tuple[tuple[Compared, ...], tuple[str, ...]]:
    """The first of each pair minus the second, corrected for all of them; and what a reader must know.

    Both were scored on the same examples. A metric in which a pair does not compare is left out, with a note.
    """
    notes: dict[str, None] = {}
    found: list[Compared] = []
    sides: list[tuple[Metric, Side, Side]] = []
    for other, base, metric in pairs:
        one = _compared(other, base, metric, notes)
        if one is not None:
            found.append(one)
            sides.append((metric, _side(other, metric), _side(base, metric)))
    firsts = [sides.index(one) for one in sides]
    told = [
        one if first == place else replace(one, repeats=found[first].name)
        for place, (one, first) in enumerate(zip(found, firsts, strict=True))
    ]
    return _corrected(told, firsts), tuple(notes)


def _baseline(contenders: Sequence[Contender], name: str | None) -> Contender:
    if name is not None:
        named = [one for one in contenders if one.name == name]
        named = named or [one for one in contenders if name in (one.variant, one.source)]
        if len(named) != 1:
            known = [one.name for one in named or contenders]
            what = "several rows" if named else f"no such row{did_you_mean(name, known)}"
            raise UsageError(f"--baseline {name}: {what}; give one of: {', '.join(known)}")
        return named[0]
    for source in dict.fromkeys(one.source for one in contenders):
        rows = [one for one in contenders if one.source == source]
        controls = [one for one in rows if one.kind == "control"]
        controls.sort(key=lambda one: one.variant != "no-teacher")
        untaught = [one for one in rows if one.kind == "student" and not one.taught]
        if controls or untaught:
            return (controls + untaught)[0]
    return next((one for one in contenders if one.kind in ("student", "model")), contenders[0])


def _chosen(metrics: Sequence[Metric], names: Collection[str]) -> list[Metric]:
    known = {name for metric in metrics for name in (metric.label[:-2], metric.metric)}
    for name in names:
        if name not in known:
            raise UsageError(f"--metric {name}: no run or file has it{did_you_mean(name, known)}")
    return [one for one in metrics if not names or {one.label[:-2], one.metric} & set(names)]


def _require_shared_tasks(contenders: Sequence[Contender], base: Contender, sharing: Collection[str]) -> None:
    """Refuse a run or file of which no row has a metric of the baseline.

    Raises:
        DataError: There is one; the message names what each has.
    """
    sources = dict.fromkeys(one.source for one in contenders)
    rows = {
        source: [one for one in contenders if one.source == source and one is not base] for source in sources
    }
    strange = [source for source, others in rows.items() if others and source not in sharing]
    if strange:
        lines = [f"  {base.name}: {_told_metrics([base])}"]
        lines += [f"  {source}: {_told_metrics(rows[source])}" for source in strange]
        raise DataError("not the same tasks, so there is nothing to compare:\n" + "\n".join(lines))


def _told_metrics(contenders: Sequence[Contender]) -> str:
    return ", ".join(f"{one.suite} {one.task} {one.metric}" for one in metrics_of(contenders)) or "none"


def _require_same_examples(pairs: Sequence[tuple[Contender, Metric]], base: Contender) -> None:
    """Refuse results of other examples.

    Raises:
        DataError: There are some; one message names all.
    """
    faults: dict[tuple[str, str], list[str]] = {}
    for other, metric in pairs:
        own, others = (_side(one, metric).results for one in (base, other))
        if found := faults_of(others, own, metric):
            faults.setdefault((other.name, f"{metric.suite} {metric.task}".strip()), found)
    if faults:
        lines = [f"  {name}, {task}: {'; '.join(found)}" for (name, task), found in faults.items()]
        raise DataError(
            f"not the same examples as those of {base.name}, so nothing can be compared:\n"
            + "\n".join(lines)
            + "\nScore them on the same data: stlm-kd eval MODEL … --suite … --data FILE --output FILE"
            + (_BETWEEN_TOKENIZERS if {metric.suite for _, metric in pairs} & _OF_TEXT else "")
        )


def _compared(other: Contender, base: Contender, metric: Metric, notes: dict[str, None]) -> Compared | None:
    """One comparison before correction; None, and a note, where the metric does not compare."""
    shared = [seed for seed in other.seeds if seed in base.seeds]
    are_paired = len(shared) > 1 or (shared != [] and len(other.scores) == len(base.scores) == 1)
    first, second = (_side(one, metric, shared if are_paired else None) for one in (other, base))
    label = metric.label[:-2]
    if not all(map(measurable, (*first.values, *second.values))):
        notes[f"{label}: {other.name} or {base.name} has a score that is not finite"] = None
        return None
    joined = join(first.results, second.results, metric)
    if isinstance(joined, Apart) and not joined.is_comparable:
        notes[
            f"{label}: {other.name} and {base.name} are not compared: {joined.reason}; bits per byte compare "
            "(--suite perplexity, or pseudo-perplexity for masked models)"
        ] = None
        return None
    notes.update(
        dict.fromkeys(_notes(other, base, metric, joined, paired=len(shared) if are_paired else None))
    )
    found = difference_between(first, second, joined, metric, are_paired=are_paired)
    seeds = f"{len(shared)} paired" if are_paired else _told(other, base)
    return Compared(other.name, base.name, metric, seeds, found)


def _notes(
    other: Contender,
    base: Contender,
    metric: Metric,
    joined: Joined | Resampled | Apart,
    *,
    paired: int | None,
) -> Iterator[str]:
    """What a reader of this comparison must know; ``paired``: over so many shared seeds."""
    label = metric.label[:-2]
    if isinstance(joined, Apart):
        yield (
            f"{label}: where examples are not paired ({joined.reason}), models count as if they erred "
            "independently, as far as it is known how much, which makes intervals too wide"
        )
    elif isinstance(joined, Joined) and not joined.is_mean:
        yield f"{label}: its noise over examples is that of their plain mean, each counting alike"
    windows = {
        str(result.report.get("window")) for one in (other, base) for result in _side(one, metric).results
    }
    if len(windows) > 1:
        yield f"{label}: not all models see windows of the same length"
    for one in (other, base):
        if len(one.scores) == 1 and one.seeds:
            yield f"{one.name} has one seed: what another seed would change is not counted"
        if len(tuned := _side(one, metric).results) == 1 and "fine_tuning" in tuned[0].report:
            yield f"{one.name} was fine-tuned once: what another fine-tuning would change is not counted"
        if paired is not None and paired < len(one.seeds):
            yield f"{one.name}: differences are over the {paired} seeds that both have"


def _side(one: Contender, metric: Metric, seeds: Sequence[int] | None = None) -> Side:
    """Some seeds' values (None: all), and the results behind them."""
    places = range(len(one.scores)) if seeds is None else [one.seeds.index(seed) for seed in seeds]
    values, results = one.values(metric), one.results(metric)
    return Side(
        tuple(values[place] for place in places),
        tuple(result for place in places for result in results[place]),
    )


def _corrected(found: Sequence[Compared], firsts: Sequence[int]) -> tuple[Compared, ...]:
    """With p corrected for all, and a verdict; ``firsts``: the place where each stands first."""
    differences = {place: found[place].evidence.difference for place in firsts}
    p_by_place = {place: one.p for place, one in differences.items() if one is not None}
    corrected = dict(zip(p_by_place, holm([*p_by_place.values()]), strict=True))
    return tuple(
        _judged(one, corrected[first]) if first in corrected else one
        for one, first in zip(found, firsts, strict=True)
    )


def _judged(one: Compared, p: float) -> Compared:
    verdict: Verdict = "within noise"
    if p < 1 - CONFIDENCE:
        verdict = "better" if (one.evidence.mean > 0) == one.metric.higher_is_better else "worse"
    return replace(one, corrected_p=p, verdict=verdict)


def _told(other: Contender, base: Contender) -> str:
    counts = [len(one.seeds) for one in (other, base)]
    return " and ".join(str(count) if count else "—" for count in counts) if any(counts) else "—"
