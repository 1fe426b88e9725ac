"""Verdicts on a difference: better, worse, equivalent, within noise, or not known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from stlm_kd.artifacts.results import Report, Row
from stlm_kd.comparison.difference import DifferenceEstimate, Sample
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.pairing import Pairing, ResampledDifference
from stlm_kd.comparison.resampling import ENOUGH_DOCUMENTS
from stlm_kd.statistics import CONFIDENCE, Difference, corrected

Verdict = Literal["better", "worse", "equivalent", "within noise", "not known"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One row against the baseline in one metric.

    Attributes:
        name: The row's name.
        baseline: The name of the baseline row.
        metric: The metric.
        seeds: The number of seeds, and whether they are paired.
        evidence: The row minus the baseline, before correction.
        smallest: The smallest difference that matters.
        scope: Restrictions of the verdict: two single models, or few documents.
        repeats: An earlier row with identical results in this metric, for example if runs share a teacher;
            usually "".
        corrected_p: The p-value of no difference, corrected for all distinct comparisons of the table; None
            if no claim is made because the noise of seeds or of examples is unknown.
        equivalence_p: The p-value of a difference of ``smallest`` or more, corrected likewise.
        verdict: See ``verdict_of``; ``not known`` if ``corrected_p`` is None.
        limit: What limits the verdict, or why there is none; usually "".
    """

    name: str
    baseline: str
    metric: Metric
    seeds: str
    evidence: DifferenceEstimate
    smallest: float
    scope: tuple[str, ...] = ()
    repeats: str = ""
    corrected_p: float | None = None
    equivalence_p: float | None = None
    verdict: Verdict = "not known"
    limit: str = ""

    @property
    def p(self) -> float | None:
        """The corrected p-value of the verdict's claim."""
        return self.equivalence_p if self.verdict == "equivalent" else self.corrected_p

    @property
    def words(self) -> str:
        """The verdict with its limits."""
        limits = [self.limit, *(self.scope if self.corrected_p is not None else ())]
        remarks = "; ".join(limit for limit in limits if limit)
        return f"{self.verdict} ({remarks})" if remarks else self.verdict


def verdict_of(
    difference: Difference,
    *,
    corrected_p: float,
    equivalence_p: float | None,
    smallest: float,
    higher_is_better: bool,
) -> tuple[Verdict, str]:
    """The verdict, and what limits it ("" if nothing does).

    ==================  =============  ============  ====================================================
    not 0 (p < .05)     at least       equivalent    verdict
                        ``smallest``   (p < .05)
    ==================  =============  ============  ====================================================
    yes                 yes            no            better or worse; perhaps by less than ``smallest``
                                                     where the interval reaches below it
    yes                 no             yes           equivalent: it is not 0, but too small to matter
    yes                 no             no            within noise: not 0, but perhaps too small to matter
    no                  either         yes           equivalent
    no                  either         no            within noise
    ==================  =============  ============  ====================================================

    Args:
        difference: With its interval, before correction.
        corrected_p: The p-value of no difference.
        equivalence_p: The p-value of a difference of ``smallest`` or more in either direction, corrected;
            None if unknown.
        smallest: The smallest difference that matters, above 0.
        higher_is_better: The direction of the metric.
    """
    level = 1 - CONFIDENCE
    is_equivalent = equivalence_p is not None and equivalence_p < level
    if corrected_p >= level:
        return ("equivalent" if is_equivalent else "within noise"), ""
    if abs(difference.mean) >= smallest:
        least = min(abs(difference.low), abs(difference.high))
        limit = f"perhaps by less than {smallest:g}" if least < smallest else ""
        return ("better" if (difference.mean > 0) == higher_is_better else "worse"), limit
    if is_equivalent:
        return "equivalent", f"not 0, but below {smallest:g}"
    return "within noise", f"not 0, but perhaps below {smallest:g}"


def scope_of(other: Row, base: Row, reports: Iterable[Report], joined: Pairing) -> Iterator[str]:
    """Restrictions of a verdict that does not generalise to other trainings or texts."""
    if not other.seeds and not base.seeds:
        yield "of these two models"
    documents = _few_documents(reports, joined)
    if documents:
        yield "on these documents" if documents > 1 else "on this document"


def _few_documents(reports: Iterable[Report], joined: Pairing) -> int:
    """The number of documents if the example noise is only within them; 0 if it is between documents."""
    if isinstance(joined, ResampledDifference):
        return joined.within
    found = [count for report in reports if isinstance(count := report.get("documents"), int)]
    return min((count for count in found if count < ENOUGH_DOCUMENTS), default=0)


def unknown_noise(sides: Sequence[tuple[Row, Sample]], evidence: DifferenceEstimate) -> str:
    """Why there is no verdict: it needs both seed and example noise; "" if both are known."""
    for one, side in sides:
        if one.seeds and len(side.values) == 1:
            return "one seed of a training"
        if len(side.results) == 1 and "fine_tuning" in side.results["report"].iloc[0]:
            return "one fine-tuning"
    if evidence.difference is None:
        return "no noise estimate is available"
    return "" if "examples" in evidence.noise else "the noise of examples is not known"


def with_verdicts(found: Sequence[Compared], firsts: Sequence[int]) -> tuple[Compared, ...]:
    """Add corrected p-values and verdicts; ``firsts``: index of the first equal comparison, for each."""
    places = [place for place in dict.fromkeys(firsts) if not found[place].limit]
    tests = [(_difference(found[place]).p, found[place].evidence.equivalence_p) for place in places]
    by_place = dict(zip(places, corrected(tests), strict=True))
    return tuple(
        _with_verdict(one, *by_place[first]) if first in by_place else one
        for one, first in zip(found, firsts, strict=True)
    )


def _difference(one: Compared) -> Difference:
    assert one.evidence.difference is not None, "compared without a verdict"
    return one.evidence.difference


def _with_verdict(one: Compared, p: float, equivalence_p: float | None) -> Compared:
    verdict, limit = verdict_of(
        _difference(one),
        corrected_p=p,
        equivalence_p=equivalence_p,
        smallest=one.smallest,
        higher_is_better=one.metric.higher_is_better,
    )
    return replace(one, corrected_p=p, equivalence_p=equivalence_p, verdict=verdict, limit=limit)
