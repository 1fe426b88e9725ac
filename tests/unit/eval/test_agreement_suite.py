"""The suite agreement: its scores are the command's figures, and what it keeps makes the same page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.eval.agreement.predictions import cohen_kappa
from stlm_kd.eval.agreement.suite import AnswersOf, agreement, explained_in, teachers_in
from stlm_kd.eval.attribution.explain import (
    AttributionConfig,
    ClassifierOutputs,
    ReadConfig,
    classifier_outputs,
)
from stlm_kd.reporting.attribution_page import attribution_page
from tests.support.planted import planted
from tests.unit.eval.test_attributions import PARTS, SENTENCE, examples

HELD = examples(
    SENTENCE, "a rocks clear of the breeze", "the breeze rode rocks", "a of clear rocks", "loose the a"
)


def teacher(parts: dict[str, float]) -> AnswersOf:
    model, tokenizer = planted(parts)

    def answers(reading: ReadConfig, asked: AttributionConfig) -> ClassifierOutputs:
        return classifier_outputs("t", model, tokenizer, HELD, reading, asked)

    return answers


def test_the_suite_scores_a_student_beside_each_teacher() -> None:
    draw = np.random.default_rng(1)
    one, other, own = ({word: float(draw.normal()) for word in PARTS} for _ in range(3))
    model, tokenizer = planted(own)
    teachers = {"first": teacher(one), "second": teacher(other)}
    asked = {"attributions": ("integrated-gradients",), "examples": 4, "top": 2, "which": "easy"}
    found = agreement(model, tokenizer, HELD, teachers, **asked)  # type: ignore[arg-type]  # options of several types
    student = classifier_outputs("s", model, tokenizer, HELD, ReadConfig(), AttributionConfig()).predictions
    for name, parts in (("first", one), ("second", other)):
        told = teacher(parts)(ReadConfig(), AttributionConfig()).predictions
        assert found.score(name, "kappa").value == cohen_kappa(told.predicted, student.predicted).value
        for score in (s for s in found.scores if s.task == name and s.metric != "kappa"):
            rows = [row.value for row in found.examples if (row.task, row.metric) == (name, score.metric)]
            assert len(rows) == score.examples and np.mean(rows) == pytest.approx(score.value)
        assert found.score(name, "integrated_gradients_correlation").examples == 4
    assert found.report["predictions"] == dict(zip(student.ids, student.predicted.tolist(), strict=True))
    kept = SuiteResult.from_json(json.loads(json.dumps(found.to_json())))
    assert teachers_in(kept) == ["first", "second"]
    beside, texts = explained_in(kept, "second", student="s")
    again, _ = explained_in(found, "second", student="s")
    assert set(texts) == set(beside.teacher.classes) <= set(HELD.ids)
    pages = [attribution_page([b.teacher, b.student], [b.compared], texts) for b in (beside, again)]
    assert pages[0] == pages[1] and pages[0].count('class="model"') == 8
    plain = agreement(model, tokenizer, HELD, teachers)
    assert teachers_in(plain) == []
    assert plain.score("first", "kl") == found.score("first", "kl")
