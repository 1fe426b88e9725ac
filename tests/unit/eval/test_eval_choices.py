"""How choices are reduced: ties, lm-eval's numbers without ties, and models that tell nothing apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.artifacts.results import Score
from stlm_kd.eval.harness import task_data
from stlm_kd.eval.harness.choices import (
    Choice,
    choice,
    degenerate_choices,
    shared_point,
    ties_share_the_point,
)

likelihoods = st.lists(st.floats(-50, -0.1), min_size=2, max_size=2, unique=True)


def pairs() -> Any:
    (built,) = task_data.build(["sample_minimal_pairs"], source="auto", num_fewshot=None)
    return task_data.leaves(built.item)[0]


@given(values=st.lists(st.integers(-4, 0), min_size=1, max_size=6), data=st.data())
def test_the_shared_point_is_the_mean_over_all_ways_to_break_ties(
    values: list[int], data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, len(values) - 1))
    best = [place for place, value in enumerate(values) if value == max(values)]
    assert shared_point(values, [right]) == pytest.approx(np.mean([place == right for place in best]))


@given(values=likelihoods)
@settings(max_examples=30, deadline=None)
def test_without_ties_the_numbers_are_those_of_lm_eval(values: list[float]) -> None:
    task = pairs()
    doc, results = task.eval_docs[0], [(value, False) for value in values]
    theirs = task.process_results(doc, results)
    with ties_share_the_point({"pairs": task}) as chosen:
        ours = task.process_results(doc, results)
    assert ours == theirs == {"acc": float(values[0] > values[1])}
    assert chosen == {"pairs": [choice(values, [0])]}
    assert task.process_results(doc, results) == theirs and len(chosen["pairs"]) == 1


def test_a_tied_pair_is_half_right_where_lm_eval_counts_it_as_right() -> None:
    task = pairs()
    results = [(-3.0, False), (-3.0, False)]
    assert task.process_results(task.eval_docs[0], results) == {"acc": 1.0}
    with ties_share_the_point({"pairs": task}):
        assert task.process_results(task.eval_docs[0], results) == {"acc": 0.5}


def fake_task(texts: list[str], gold: object, *, multiple_input: bool = False) -> Any:
    """As much of a task as is asked; lm-eval's reduction stands in with 9 for each metric."""
    metrics = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
    return SimpleNamespace(
        OUTPUT_TYPE="multiple_choice",
        config=SimpleNamespace(process_results=None),
        multiple_input=multiple_input,
        doc_to_choice=lambda doc: texts,
        doc_to_text=lambda doc: gold if multiple_input else "",
        doc_to_target=lambda doc: "text" if multiple_input else gold,
        process_results=lambda doc, results: dict.fromkeys(metrics, 9.0),
    )


@pytest.mark.parametrize(
    ("gold", "multiple_input"), [(1, False), ("éé", False), ([1], False), (np.int64(1), False), (1, True)]
)
def test_accuracies_by_hand(gold: object, multiple_input: bool) -> None:
    texts = ["abcd", "éé", "e"]
    task = fake_task(texts, gold, multiple_input=multiple_input)
    results = [(value, False) for value in (-8.0, -4.0, -4.0, -9.0, -4.0, -5.0)]
    with ties_share_the_point({"t": task}):
        found = task.process_results({}, results)
    # acc: -4 ties; by characters: -2, -2, -4; by bytes: -2, -1, -4; less the unconditional: 1, 0, 1
    assert found == {
        "acc": 0.5,
        "acc_norm": 0.5,
        "acc_bytes": 1.0,
        "acc_mutual_info": 0.0,
        "exact_match": 9.0,
    }


def test_an_answer_that_is_no_choice_is_never_right() -> None:
    task = fake_task(["a", "b"], 5)
    with ties_share_the_point({"t": task}):
        assert task.process_results({}, [(-1.0, True), (-2.0, False)])["acc"] == 0.0


def test_other_tasks_are_left_alone() -> None:
    task = fake_task(["a"], 0)
    task.OUTPUT_TYPE = "generate_until"
    process = task.process_results
    with ties_share_the_point({"t": task}) as chosen:
        assert task.process_results is process and chosen == {}


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ([Choice((0, 1, 2), 3, (0,))] * 2, "degenerate: all choices tie in all 2 examples"),
        ([Choice((2,), 4, (n % 4,)) for n in range(9)], "degenerate: takes choice 3 in all 9 examples"),
        ([Choice((0,), 2, (0,))] * 300, None),  # minimal pairs, all right
        ([Choice((1,), 2, (0,))] * 300, None),  # and all wrong
        ([Choice((2,), 4, (n % 4,)) for n in range(2)], None),  # two examples say nothing
        ([Choice((n % 3,), 4, (1,)) for n in range(50)], None),
        ([Choice((0, 1), 2, (0,)), *[Choice((0,), 2, (0,))] * 20], None),  # one tie
        ([Choice((0, 1), 2, (0,))], None),  # a single example
        ([], None),
    ],
)
def test_what_is_degenerate(chosen: list[Choice], said: str | None) -> None:
    assert degenerate_choices(chosen) == said


@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_the_detectable_difference_is_found_with_a_power_of_four_fifths(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size, first = 400, 0.5
    stderr = (0.25 / size) ** 0.5
    difference = Score("t", "acc", first, stderr, size).detectable
    assert difference is not None
    answers = [
        generator.random((4000, size)) < share for share in (first - difference / 2, first + difference / 2)
    ]
    apart = answers[1].astype(float) - answers[0]
    z = apart.mean(1) / (apart.std(1, ddof=1) / size**0.5)
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.04)


def test_centred_scores_and_what_has_none() -> None:
    assert Score("t", "acc", 0.25, 0.1, 8, chance=0.25).centred == 0
    assert Score("t", "acc", 1.0, 0.0, 8, chance=0.5).centred == 1
    assert Score("t", "acc", 0.0, 0.0, 8, chance=0.5).centred == -1
    assert Score("t", "acc", 1.0, 0.0, 8, chance=1.0).centred is None
    assert Score("t", "bits_per_byte", 1.0, 0.0, 8).centred is None
    assert [Score("t", "acc", 1.0, stderr, 8).detectable for stderr in (None, 0.0, float("nan"))] == [
        None
    ] * 3


def test_the_patch_is_undone_after_a_failure() -> None:
    task = pairs()
    before = task.__dict__.get("process_results", mock.sentinel.none)
    with pytest.raises(RuntimeError), ties_share_the_point({"pairs": task}):
        raise RuntimeError
    assert task.__dict__.get("process_results", mock.sentinel.none) is before
