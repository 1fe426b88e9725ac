"""Scores computed again from per-example values, for suites whose data no run of a test has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stlm_kd.artifacts.results import ExampleScore, Score, SuiteResult, text_hash
from stlm_kd.data.labelled.question_answering import Question
from stlm_kd.errors import DataError
from stlm_kd.eval.fine_tuning.entities import entity_scores
from stlm_kd.eval.fine_tuning.squad import answer_scores
from stlm_kd.publishing.verify.recompute import recomputed
from stlm_kd.publishing.verify.report import shortened
from stlm_kd.publishing.verify.score_checks import score_findings

TAGS = ["O", "B-PER", "I-PER", "B-LOC"]


def _entities() -> SuiteResult:
    draw = np.random.default_rng(0)
    labels, predicted = (
        [[TAGS[tag] for tag in draw.integers(0, 4, size=3 + row % 4)] for row in range(20)] for _ in range(2)
    )
    predicted = [found[: len(own)] + own[len(found) :] for found, own in zip(predicted, labels, strict=True)]
    ids = [f"s{row}" for row in range(20)]
    found = entity_scores(predicted, labels, task="t", ids=ids, suite="ner")
    return replace(found, report={**found.report, "told": dict(zip(ids, predicted, strict=True))})


def _answers() -> SuiteResult:
    questions = [Question(f"q{i}", "who?", "Ann met Bo and Cy", (("Bo", 8), ("Cy", 15))) for i in range(9)]
    return answer_scores({f"q{i}": ["Bo", "the Cy met", "Ann"][i % 3] for i in range(9)}, questions)


@pytest.mark.parametrize("result", [_entities(), _answers()], ids=["entities", "answers"])
def test_scores_of_fine_tunings_follow_from_their_examples(result: SuiteResult) -> None:
    again = recomputed(result)
    for claimed in result.scores:
        found = again.score(claimed.task, claimed.metric)
        assert (found.value, found.stderr) == pytest.approx((claimed.value, claimed.stderr), rel=1e-12)
        edited = replace(claimed, value=claimed.value / 2)
        scores = tuple(edited if one is claimed else one for one in result.scores)
        said = [str(one) for one in score_findings(replace(result, scores=scores), "row")]
        assert any(f"{claimed.metric}: its value is not that of its examples" in one for one in said)


def test_a_suite_from_elsewhere_is_not_computed_again_and_that_is_said() -> None:
    score = Score("t", "novelty", 0.5, None, 2)
    result = SuiteResult("own", (score,), (ExampleScore("t", "a", "novelty", 0.5),))
    with pytest.raises(DataError, match="cannot be computed again"):
        recomputed(result)
    said = list(score_findings(result, "row"))
    assert said and not any(one.refutes for one in said)


@pytest.mark.parametrize(
    "report", [{}, {"pieces": 1}, {"pieces": {"tokens": [1], "bytes": []}}, {"pieces": {"tokens": [-1]}}]
)
def test_a_malformed_report_is_a_finding(report: dict[str, object]) -> None:
    score = Score("text", "bits_per_byte", 1.0, None, 1, higher_is_better=False)
    examples = (ExampleScore("text", "0", "bits_per_byte", 1.0),)
    older = SuiteResult("perplexity", (score,), examples, report=report)  # type: ignore[arg-type]
    newer = replace(older, texts={"text": {"0": text_hash("a")}})
    for result, refutes in ((older, False), (newer, True)):
        (found,) = (one for one in score_findings(result, "row") if "do not follow" in str(one))
        assert found.refutes == refutes


def test_text_from_elsewhere_is_escaped_and_cut() -> None:
    assert shortened("a\x1b[31m\u202e ±") == "a\\x1b[31m\\u202e ±"
    assert len(shortened("x" * 1000)) == 400


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e150, -1e150])
def test_values_that_no_mean_can_hold_are_findings(value: float) -> None:
    for suite, metric, report in (
        ("perplexity", "bits_per_byte", {"pieces": {"tokens": [1, 1], "bytes": [2**40, 1]}}),
        ("lm-eval", "acc", {"group_subtasks": {}}),
        ("masked-loss", "masked_loss", {"by_window": {"masked": [2**40, 1], "right": [0, 0]}}),
    ):
        task = "t" if suite == "lm-eval" else "text"
        examples = tuple(ExampleScore(task, name, metric, value) for name in "01")
        result = SuiteResult(suite, (Score(task, metric, 0.5, 0.1, 2),), examples, report=report)  # type: ignore[arg-type]
        assert any(one.refutes for one in score_findings(replace(result, texts={"t": {}}), "row"))
