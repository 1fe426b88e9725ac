"""Compares claimed scores with scores that were computed again, example by example, then by statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, variance

from scipy.special import stdtr

from stlm_kd.artifacts.results import SIGNIFICANCE, Row, Score, SuiteResult, measurable
from stlm_kd.comparison.difference import difference_between, sample_of
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.metrics import PER_TOKEN, Metric
from stlm_kd.comparison.pairing import pair
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.publishing.verify.recompute import values_of
from stlm_kd.publishing.verify.report import Finding, contradiction
from stlm_kd.statistics import corrected

EQUAL = 1e-6
"""Values that differ by less, relative to 1 or to their size, are equal."""

NEGLIGIBLE = 1e-3
"""A score that differs by less is confirmed: other processors round otherwise."""

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
        """Compare the results of one model with a claim about the same model."""
        by_key = {_key(result): result for result in found}
        missing = [result for result in claimed if _key(result) not in by_key]
        if missing:
            suites = ", ".join(dict.fromkeys(result.suite for result in missing))
            message = f"{suites}: not scored again, since it needs teachers that are not there"
            self.findings.append(Finding(place, message, refutes=False))
        for result in claimed:
            if (again := by_key.get(_key(result))) is not None:
                self._add(f"{place}: {_named(result)}", result, again)

    def add_seed(self, place: str, row: Row, table: ResultsTable, metric: Metric, value: float) -> None:
        """Compare the score of one more training with the claimed scores of all seeds.

        A new seed's score differs from the mean of k seeds with the variance s² (1 + 1/k), plus that of the
        examples; Student's t with k - 1 degrees of freedom.
        """
        scores = table.scores_of(row, metric)
        claimed = [score.value for score in scores]
        where = f"{place}: {metric.name}"
        if len(claimed) < 2:
            message = (
                "one claimed seed gives no interval over seeds, so other weights neither confirm nor refute"
            )
            self.findings.append(Finding(where, message, False, f"{claimed[0]:.6g}", f"{value:.6g}"))
            return
        errors = [score.stderr for score in scores if score.stderr is not None and measurable(score.stderr)]
        of_examples = fmean(error**2 for error in errors) if errors else 0.0
        self.confirms = True
        total = variance(claimed) * (1 + 1 / len(claimed)) + of_examples
        difference = value - fmean(claimed)
        p = None if total == 0 else 2 * float(stdtr(len(claimed) - 1, -abs(difference) / math.sqrt(total)))
        finding = Finding(
            where,
            f"outside what {len(claimed)} claimed seeds give",
            claimed=f"{fmean(claimed):.6g}",
            found=f"{value:.6g}",
        )
        self._tested.append((finding, p, abs(difference) >= NEGLIGIBLE))

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

    def _add(self, place: str, claimed: SuiteResult, found: SuiteResult) -> None:
        for task in dict.fromkeys((*claimed.texts, *found.texts)):
            own, other = claimed.texts.get(task, {}), found.texts.get(task, {})
            unlike = sorted(name for name in {*own, *other} if own.get(name) != other.get(name))
            if unlike and own and other:
                message = f"{len(unlike)} examples of {task} are others than claimed, such as {unlike[0]!r}"
                self.findings.append(Finding(place, message))
                return
        for note in claimed.notes:
            if note not in found.notes:
                message = f"scoring again does not give its note: {note}"
                self.findings.append(Finding(place, message, refutes=False))
        if claimed.data != found.data and claimed.data:
            message = "the data sets are of other versions, with the same texts"
            self.findings.append(Finding(place, message, False, str(claimed.data), str(found.data)))
        table = ResultsTable(
            [scored_model(name, [[one]]) for name, one in (("found", found), ("claimed", claimed))]
        )
        for score in claimed.scores:
            again = next((s for s in found.scores if (s.task, s.metric) == (score.task, score.metric)), None)
            where = f"{place} {score.task} {score.metric}"
            if again is None:
                self.findings.append(
                    contradiction(where, "this score was not found", f"{score.value:.6g}", "")
                )
            else:
                self._compare(where, score, again, _unlike_examples(score, claimed, found), table)

    def _compare(
        self,
        where: str,
        claimed: Score,
        found: Score,
        unlike: Mapping[str, tuple[float, float]],
        table: ResultsTable,
    ) -> None:
        size = claimed.examples
        facts = [name for name in _FACTS if getattr(claimed, name) != getattr(found, name)]
        for name in facts:
            pair_of = (str(getattr(one, name)) for one in (claimed, found))
            self.findings.append(contradiction(where, f"its {name} is another", *pair_of))
        difference = abs(claimed.value - found.value)
        if facts or (_equal(claimed.value, found.value) and not unlike):
            if not facts and claimed.part_of is None:
                self.lines.append(f"{where}: {found.value:.6g}, equal in all {size} examples")
            return
        values = (f"{claimed.value:.6g}", f"{found.value:.6g}")
        visible = [name for name, (one, other) in unlike.items() if not abs(one - other) <= VISIBLE]
        if len(visible) > max(FEWEST, FEW * size):
            message = (
                f"{len(visible)} of {size} examples have other values, such as {_shown(unlike, visible)}"
            )
            self.findings.append(contradiction(where, message, *values))
            return
        if claimed.part_of is not None or claimed.metric in PER_TOKEN:
            return  # its group, or bits per byte, is tested
        message = f"not the score of these weights; {len(unlike)} of {size} examples differ"
        if unlike:
            message += f", such as {_shown(unlike, visible or [*unlike])}"
        finding = contradiction(where, message, *values)
        self._tested.append((finding, _p(table, claimed), not difference < NEGLIGIBLE))


_FACTS = ("examples", "choices", "chance", "higher_is_better", "degenerate")


def _p(table: ResultsTable, score: Score) -> float | None:
    """The p-value of no difference between both results of a table, by the statistics of ``compare``."""
    metric = next(m for m in table.metrics if (m.task, m.metric) == (score.task, score.metric))
    first, second = (sample_of(table, row, metric) for row in table.rows)
    if not all(map(measurable, (*first.values, *second.values))):
        return None
    joined = pair(table, first.results, second.results, metric)
    found = difference_between(first, second, joined, are_paired=False, smallest=NEGLIGIBLE)
    return None if found.difference is None else found.difference.p


def _unlike_examples(
    score: Score, claimed: SuiteResult, found: SuiteResult
) -> dict[str, tuple[float, float]]:
    """Claimed and found value of the examples that differ, by id; of those that one lacks, NaN."""
    both = [values_of(each, score.task, score.metric) for each in (claimed, found)]
    names = dict.fromkeys((*both[0], *both[1]))
    pairs = {name: (both[0].get(name, math.nan), both[1].get(name, math.nan)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def _equal(one: float, other: float) -> bool:
    both_nan = math.isnan(one) and math.isnan(other)
    return one == other or both_nan or abs(one - other) <= EQUAL * max(1.0, abs(other))


def _key(result: SuiteResult) -> tuple[object, ...]:
    tasks = frozenset(score.task for score in result.scores if not score.part_of)
    return result.suite, result.label, result.tuning_seed, tasks


def _named(result: SuiteResult) -> str:
    """The suite, with what tells its results apart."""
    seed = result.tuning_seed
    known = [result.label, "" if seed is None else f"fine-tuning {seed}"]
    apart = ", ".join(one for one in known if one)
    return f"{result.suite} ({apart})" if apart else result.suite


def _shown(unlike: Mapping[str, tuple[float, float]], names: Sequence[str]) -> str:
    return ", ".join(_each(unlike, names[:5]))


def _each(unlike: Mapping[str, tuple[float, float]], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        one, other = unlike[name]
        yield f"{name!r} ({one:.4g}, found {other:.4g})"
