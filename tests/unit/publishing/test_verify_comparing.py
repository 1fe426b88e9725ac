"""Claimed scores against scores that were computed again: equal, within noise, or refuted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from stlm_kd.artifacts.results import ExampleScore, Row, Score, SuiteResult
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.metrics import Metric
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.publishing.verify.comparing import Comparisons
from stlm_kd.publishing.verify.report import Finding


def result(values: Sequence[float], metric: str = "acc") -> SuiteResult:
    size, mean = len(values), sum(values) / len(values)
    error = math.sqrt(sum((one - mean) ** 2 for one in values) / (size - 1) / size)
    examples = tuple(ExampleScore("t", str(at), metric, value) for at, value in enumerate(values))
    return SuiteResult("own", (Score("t", metric, mean, error, size),), examples)


def compared(claimed: SuiteResult, found: SuiteResult) -> Comparisons:
    return both([claimed], [found])


@pytest.mark.parametrize(
    ("flipped", "said", "refutes"),
    [
        (0, "equal in all 200 examples", False),
        (1, "within noise", False),
        (15, "not the score of these weights; 15 of 200 examples differ, such as '0' (0, found 1)", True),
        (40, "40 of 200 examples have other values", True),
    ],
)
def test_flipped_answers_of_one_model(flipped: int, said: str, refutes: bool) -> None:
    claimed = [0.0] * 100 + [1.0] * 100
    done = compared(result(claimed), result([1.0] * flipped + claimed[flipped:]))
    assert said in "\n".join([*map(str, done.findings), *done.lines])
    assert any(one.refutes for one in done.findings) == refutes


def test_answers_that_are_exchanged_are_refuted_though_the_mean_fits() -> None:
    values = [0.0] * 50 + [1.0] * 50
    (finding,) = compared(result(values), result(values[::-1])).findings
    assert finding.refutes and "100 of 100 examples have other values" in str(finding)


def test_rounding_on_another_processor_is_no_difference() -> None:
    values = [1 + at / 100 for at in range(50)]
    done = compared(result(values, "loss"), result([one + 2e-4 for one in values], "loss"))
    assert not done.findings and "less than 0.001 apart" in done.lines[0]
    assert "equal in all" in compared(result(values), result([one + 1e-9 for one in values])).lines[0]


def test_facts_of_the_examples_are_those_of_the_claim() -> None:
    own = result([0.0, 1.0, 1.0])
    for change in ({"chance": 0.25}, {"choices": 3}, {"degenerate": "degenerate"}):
        other = replace(own, scores=(replace(own.scores[0], **change),))
        (finding,) = compared(own, other).findings
        assert finding.refutes and f"its {next(iter(change))} is another" in str(finding)


def test_another_seed_is_judged_by_students_t_corrected_for_all_metrics() -> None:
    seeds = {"a": (1.0, 2.0, 3.0), "b": (5.0, 5.1, 4.9)}
    scores = [
        [SuiteResult("own", tuple(Score("t", name, values[at], 0.5, 9) for name, values in seeds.items()))]
        for at in range(3)
    ]
    table = ResultsTable([scored_model("m", scores, seeds=(1, 2, 3))])
    done, found = Comparisons(), {"a": 15.0, "b": 5.6}
    ps = []
    for metric in table.metrics:
        values = seeds[metric.metric]
        done.add_seed("m", table.rows[0], table, metric, found[metric.metric])
        spread = math.sqrt(stats.tvar(values) * 4 / 3 + 0.25)
        ps.append(2 * stats.t.sf(abs(found[metric.metric] - sum(values) / 3) / spread, 2))
    done.close()
    assert ps[0] * 2 < 0.05 < ps[1]
    (finding,) = done.findings
    assert finding.p == pytest.approx(ps[0] * 2) and "outside what 3 claimed seeds give" in str(finding)
    assert f"p {ps[1]:.2g}" in done.lines[0] and done.confirms


def test_one_claimed_seed_neither_confirms_nor_refutes() -> None:
    table = ResultsTable([scored_model("m", [[result([0.0, 1.0])]], seeds=(1,))])
    done = Comparisons()
    done.add_seed("m", table.rows[0], table, table.metrics[0], 0.9)
    done.close()
    (finding,) = done.findings
    assert not finding.refutes and not done.confirms and "no interval over seeds" in str(finding)


def answers(
    values: Sequence[float], task: str = "t", *, suite: str = "lm-eval", seed: int = 0
) -> SuiteResult:
    """A suite's result; with a seed, that of a fine-tuning."""
    found = result(values)
    examples = tuple(one._replace(task=task) for one in found.examples)
    report = {"fine_tuning": {"seed": seed}} if seed else {}
    return SuiteResult(suite, (replace(found.scores[0], task=task),), examples, report=report)


def both(claimed: Sequence[SuiteResult], found: Sequence[SuiteResult]) -> Comparisons:
    done = Comparisons()
    done.add("m, seed 1", claimed, found)
    done.close()
    return done


def refuting(done: Comparisons) -> list[Finding]:
    return [one for one in done.findings if one.refutes]


ANSWERS = [1.0, 0.0, 1.0, 1.0] * 25


def test_an_invented_or_a_dropped_task_is_no_excuse_from_scoring_again() -> None:
    own = answers(ANSWERS)
    more = replace(own, scores=(*own.scores, replace(own.scores[0], task="invented")))
    (claimed, found) = refuting(both([more], [own]))
    assert "does not give these tasks" in str(claimed) and "which are not claimed" in str(found)
    tasks = [answers(ANSWERS, task, suite="glue", seed=1) for task in ("cola", "rte")]
    (dropped,) = refuting(both(tasks[:1], tasks))
    assert "not claimed" in dropped.message and dropped.found == "rte"


def test_only_suites_that_compare_with_teachers_may_be_left_out() -> None:
    own = answers(ANSWERS)
    done = both([own, replace(own, suite="agreement")], [own])
    assert not refuting(done) and "needs teachers that are not there" in str(done.findings[0])
    assert refuting(both([own, answers(ANSWERS, suite="squad")], [own]))


def test_a_number_that_is_none_is_equal_to_itself_alone() -> None:
    score = Score("t", "pearson", math.nan, None, 9)
    lost = SuiteResult("regression", (score,))
    good = replace(lost, scores=(replace(score, value=0.5),))
    assert both([lost], [lost]).findings == [] and len(both([lost], [lost]).lines) == 1
    assert refuting(both([good], [lost])) and refuting(both([lost], [good]))


def test_fine_tunings_are_other_trainings_that_are_compared_over_their_seeds() -> None:
    draw = np.random.default_rng(0)

    def tuned(share: float) -> list[SuiteResult]:
        return [
            answers([float(one) for one in draw.random(200) < share], suite="squad", seed=seed)
            for seed in (1, 2, 3)
        ]

    claim = tuned(0.7)
    again = both(claim, tuned(0.7))
    assert again.findings == [] and len(again.lines) == 1 and "within noise" in again.lines[0]
    (fraud,) = refuting(both(claim, tuned(0.3)))
    assert "fine-tunings" in fraud.place and fraud.p is not None and fraud.p < 0.05
    alone = both(claim[:1], tuned(0.3)[:1])
    assert not refuting(alone) and "too few fine-tunings" in str(alone.findings[0])


def seeded(values: Sequence[float], again: float, stderr: float | None = None) -> Comparisons:
    """The score of one more training, beside the claimed ones of some seeds."""
    scores = [(SuiteResult("s", (Score("t", "acc", value, stderr, 9),)),) for value in values]
    row = Row("m", "student", None, None, None, tuple(range(1, len(values) + 1)), tuple(scores), "student")
    done = Comparisons()
    done.add_seed("m, seed 1", row, ResultsTable([row]), Metric("s", "", "t", "acc", True), again)
    done.close()
    return done


def test_without_an_interval_a_seed_neither_confirms_nor_refutes() -> None:
    for values in ([0.5], [0.5, 0.5], [math.nan, 0.5]):
        done = seeded(values, 0.6)
        assert not refuting(done) and not done.lines and "no interval over seeds" in str(done.findings[0])
    assert refuting(seeded([0.5, 0.6], math.nan))
