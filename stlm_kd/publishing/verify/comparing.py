"""Compares claimed scores with scores that were computed again, example by example, then by statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, variance

from stlm_kd.artifacts.results import LARGEST, SIGNIFICANCE, Row, Score, SuiteResult, measurable
from stlm_kd.comparison.difference import Sample, difference_between, sample_of
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.metrics import PER_TOKEN, Metric
from stlm_kd.comparison.pairing import pair
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.eval import SUITES
from stlm_kd.lazy import special
from stlm_kd.publishing.verify.recompute import values_of
from stlm_kd.publishing.verify.report import Finding, contradiction, listed
from stlm_kd.publishing.verify.score_checks import close
from stlm_kd.statistics import corrected

EQUAL = 1e-6
"""Values that differ by less, relative to 1 or to their size, are equal."""

NEGLIGIBLE = 1e-3
"""A score that differs by less is confirmed: other processors round otherwise."""

_Key = tuple[object, ...]
"""What tells the results of a model apart: suite, label, seed of a fine-tuning, tasks."""

VISIBLE, FEW, FEWEST = 1e-2, 0.1, 3
"""At most this share of examples of the same model, or this number, differs by this much."""


@dataclass(slots=True)
class Comparisons:
    """Comparisons of one rung, whose p-values are corrected together.

    Attributes:
        findings: Contradictions and limits so far.
        lines: What was compared, one sentence each.
        confirms: Whether a student or control was compared, so that the rung is reached if nothing refutes.
    """

    confirms: bool = False
    findings: list[Finding] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    _tested: list[tuple[Finding, float | None, bool]] = field(default_factory=list)

    def add(self, place: str, claimed: Sequence[SuiteResult], found: Sequence[SuiteResult]) -> None:
        """Compare the results of one model with a claim about the same model.

        Fine-tunings are trainings, which other processors do differently, so their scores are compared over
        the seeds of fine-tuning, and not example by example.
        """
        known = {_key(result): result for result in claimed}
        again = {_key(result): result for result in found}
        self.findings += _unpaired(place, known, again)
        pairs = [(known[key], again[key]) for key in known if key in again]
        for suite, label in dict.fromkeys((result.suite, result.label) for result, _ in pairs):
            both = [pair for pair in pairs if (pair[0].suite, pair[0].label) == (suite, label)]
            claims, others = zip(*both, strict=True)
            table = ResultsTable([scored_model("found", [others]), scored_model("claimed", [claims])])
            for result, other in both:
                self._add(place, result, other, table)

    def add_seed(self, place: str, row: Row, table: ResultsTable, metric: Metric, value: float) -> None:
        """Compare the score of one more training with the claimed scores of all seeds.

        A new seed's score differs from the mean of k seeds with the variance s² (1 + 1/k), plus that of the
        examples; Student's t with k - 1 degrees of freedom.
        """
        scores = table.scores_of(row, metric)
        claimed = [score.value for score in scores]
        where, numbers = f"{place}: {metric.name}", (_short(fmean(claimed)), _short(value))
        outside = contradiction(where, f"outside what {len(claimed)} claimed seeds give", *numbers)
        errors = [score.stderr for score in scores if score.stderr is not None and measurable(score.stderr)]
        total = fmean(error**2 for error in errors) if errors else 0.0
        if all(map(measurable, claimed)) and not measurable(value):
            self.findings.append(outside)
            return
        if len(claimed) > 1 and not close(min(claimed), max(claimed)):
            total += variance(claimed) * (1 + 1 / len(claimed))
        difference = abs(value - fmean(claimed))
        if len(claimed) < 2 or not 0 < total <= LARGEST:
            how = "one claimed seed gives" if len(claimed) < 2 else "the claimed seeds give"
            message = f"{how} no interval over seeds, so other weights neither confirm nor refute"
            self.findings.append(Finding(where, message, False, *numbers))
            return
        self.confirms = True
        p = 2 * float(special.stdtr(len(claimed) - 1, -difference / math.sqrt(total)))
        self._tested.append((outside, p, difference >= NEGLIGIBLE))

    def close(self) -> None:
        """Correct all p-values (Holm), and turn comparisons into findings and sentences."""
        places = [at for at, (_, p, _) in enumerate(self._tested) if p is not None]
        both = corrected([(self._tested[at][1] or 0.0, None) for at in places])
        ps = dict(zip(places, (p for p, _ in both), strict=True))
        for at, (finding, _, is_visible) in enumerate(self._tested):
            p = ps.get(at)
            if is_visible and (p is None or p < SIGNIFICANCE):
                self.findings.append(replace(finding, p=p))
            else:
                how = f"within noise (p {p:.2g}, corrected)" if p is not None else "no noise is known"
                how = how if is_visible else f"less than {NEGLIGIBLE:g} apart"
                self.lines.append(f"{finding.place}: {finding.found} found, {finding.claimed} claimed: {how}")
        self._tested.clear()

    def _add(self, row: str, claimed: SuiteResult, found: SuiteResult, table: ResultsTable) -> None:
        place = f"{row}: {_named(claimed)}"
        for task in dict.fromkeys((*claimed.texts, *found.texts)):
            own, other = claimed.texts.get(task, {}), found.texts.get(task, {})
            others = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
            if others and own and other:
                message = f"{len(others)} examples of {task} are others than claimed, such as {others[0]!r}"
                self.findings.append(Finding(place, message))
                return
        for note in claimed.notes:
            if note not in found.notes:
                message = f"scoring again does not give its note: {note}"
                self.findings.append(Finding(place, message, refutes=False))
        if claimed.data != found.data and claimed.data:
            message = "the data sets are of other versions, with the same texts"
            self.findings.append(Finding(place, message, False, str(claimed.data), str(found.data)))
        known = {(score.task, score.metric): score for score in claimed.scores}
        again = {(score.task, score.metric): score for score in found.scores}
        for name in again.keys() - known.keys():
            message = f"{' '.join(name)} is not claimed, though the suite gives it"
            self.findings.append(Finding(place, message, refutes=False))
        for name, score in known.items():
            where = f"{place} {' '.join(name)}"
            if name not in again:
                self.findings.append(
                    contradiction(where, "this score was not found", _short(score.value), "")
                )
                continue
            unlike = _unlike_examples(score, claimed, found)
            if self._is_to_test(where, score, again[name], unlike, is_tuned=_is_tuned(claimed)):
                over = f"{row}: {_named(claimed, 'fine-tunings')}" if _is_tuned(claimed) else place
                self._test(f"{over} {' '.join(name)}", score, table, unlike, is_tuned=_is_tuned(claimed))

    def _is_to_test(
        self,
        where: str,
        claimed: Score,
        found: Score,
        unlike: Mapping[str, tuple[float, float]],
        *,
        is_tuned: bool,
    ) -> bool:
        """Whether statistics decide, since two scores are neither equal nor clearly others."""
        facts = [name for name in _FACTS if getattr(claimed, name) != getattr(found, name)]
        for name in facts if not is_tuned else [name for name in facts if name != "degenerate"]:
            pair_of = (str(getattr(one, name)) for one in (claimed, found))
            self.findings.append(contradiction(where, f"its {name} is another", *pair_of))
        if facts:
            return is_tuned and facts == ["degenerate"] and claimed.part_of is None
        if _equal(claimed.value, found.value) and not unlike:
            if claimed.part_of is None:
                self.lines.append(f"{where}: {_short(found.value)}, equal in all {claimed.examples} examples")
            return False
        visible = _visible(unlike)
        if not is_tuned and len(visible) > max(FEWEST, FEW * claimed.examples):
            message = (
                f"{len(visible)} of {claimed.examples} examples have other values, such as "
                f"{_shown(unlike, visible)}"
            )
            numbers = _short(claimed.value), _short(found.value)
            self.findings.append(contradiction(where, message, *numbers))
            return False
        # the group of a part, or bits per byte, is tested
        return claimed.part_of is None and claimed.metric not in PER_TOKEN

    def _test(
        self,
        where: str,
        claimed: Score,
        table: ResultsTable,
        unlike: Mapping[str, tuple[float, float]],
        *,
        is_tuned: bool,
    ) -> None:
        """Test whether the scores of both rows of a table, found and claimed, differ by more than noise."""
        metric = next(m for m in table.metrics if (m.task, m.metric) == (claimed.task, claimed.metric))
        first, second = (sample_of(table, row, metric) for row in table.rows)
        if any(finding.place == where for finding, *_ in self._tested):
            return  # of another fine-tuning
        numbers, p = (_short(second.values[0]), _short(first.values[0])), _p(table, first, second, metric)
        message = "not the score of these weights"
        if is_tuned and (p is None or len(first.repeats) < 2):
            message = "fine-tuned again with another score; too few fine-tunings to tell whether by noise"
            self.findings.append(Finding(where, message, False, *numbers))
            return
        if unlike and not is_tuned:
            message += f"; {len(unlike)} of {claimed.examples} examples differ, such as "
            message += _shown(unlike, _visible(unlike) or [*unlike])
        is_visible = not abs(first.values[0] - second.values[0]) < NEGLIGIBLE
        self._tested.append((contradiction(where, message, *numbers), p, is_visible))


_FACTS = ("examples", "choices", "chance", "higher_is_better", "degenerate")


def _p(table: ResultsTable, first: Sample, second: Sample, metric: Metric) -> float | None:
    """The p-value of no difference between both rows of a table, by the statistics of ``compare``."""
    if not all(map(measurable, (*first.values, *second.values))):
        return None
    joined = pair(table, first.results, second.results, metric)
    found = difference_between(first, second, joined, are_paired=False, smallest=NEGLIGIBLE)
    return None if found.difference is None else found.difference.p


def _unpaired(
    place: str, claimed: Mapping[_Key, SuiteResult], found: Mapping[_Key, SuiteResult]
) -> Iterator[Finding]:
    """What only one of the claim and the results that were found has."""
    again = {result.suite for result in found.values()}
    without = [result for key, result in claimed.items() if key not in found]
    skipped = {one.suite for one in without if one.suite not in again and SUITES[one.suite].teachers}
    if skipped:
        message = f"{listed(sorted(skipped))}: not scored again, since it needs teachers that are not there"
        yield Finding(place, message, refutes=False)
    for result in without:
        if result.suite not in skipped:
            message = "scored again, the suite does not give these tasks"
            yield contradiction(f"{place}: {_named(result)}", message, listed(_tasks(result)), "")
    for result in (result for key, result in found.items() if key not in claimed):
        message = "scored again, the suite gives these tasks, which are not claimed"
        yield contradiction(f"{place}: {_named(result)}", message, "", listed(_tasks(result)))


def _unlike_examples(
    score: Score, claimed: SuiteResult, found: SuiteResult
) -> dict[str, tuple[float, float]]:
    """Claimed and found value of the examples that differ, by id; of those that one lacks, NaN."""
    both = [values_of(each, score.task, score.metric) for each in (claimed, found)]
    names = dict.fromkeys((*both[0], *both[1]))
    pairs = {name: (both[0].get(name, math.nan), both[1].get(name, math.nan)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def _equal(one: float, other: float) -> bool:
    return close(one, other, relative=EQUAL, absolute=EQUAL)


def _visible(unlike: Mapping[str, tuple[float, float]]) -> list[str]:
    """The examples that differ by more than other processors' rounding, or have a value on one side only."""
    return [name for name, (one, other) in unlike.items() if not abs(one - other) <= VISIBLE]


def _is_tuned(result: SuiteResult) -> bool:
    return result.tuning_seed is not None


def _tasks(result: SuiteResult) -> list[str]:
    """The requested tasks."""
    return sorted({score.task for score in result.scores if not score.part_of})


def _key(result: SuiteResult) -> _Key:
    return result.suite, result.label, result.tuning_seed, *_tasks(result)


def _named(result: SuiteResult, tunings: str = "") -> str:
    """The suite, with what tells its results apart: of fine-tunings the seed, or a word for all of them."""
    seed = result.tuning_seed
    apart = ", ".join(
        filter(None, (result.label, tunings or ("" if seed is None else f"fine-tuning {seed}")))
    )
    return f"{result.suite} ({apart})" if apart else result.suite


def _short(value: float) -> str:
    return f"{value:.6g}"


def _shown(unlike: Mapping[str, tuple[float, float]], names: Sequence[str]) -> str:
    """Up to five examples with their values."""
    return ", ".join(f"{name!r} ({unlike[name][0]:.4g}, found {unlike[name][1]:.4g})" for name in names[:5])
