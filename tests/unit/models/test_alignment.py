"""Alignments against the table of names, by properties for any depths, and what is refused."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import ModelError
from stlm_kd.models.layer_alignment import ALIGNMENTS, aligned, layer_pairs, site_pairs

DEPTHS = st.integers(1, 40)


@pytest.mark.parametrize("name", ["full", "middle", "late"])
@pytest.mark.parametrize(("student", "teacher"), [(3, 12), (4, 12), (6, 12), (12, 12), (6, 24)])
def test_named_alignments_are_those_of_causal_distillation(name: str, student: int, teacher: int) -> None:
    k = teacher // student
    expected = {
        "full": {s: tuple(range(s * k, s * k + k)) for s in range(student)},
        "middle": {student // 2: (teacher // 2,)},
        "late": {student - 3: (teacher - 3,), student - 2: (teacher - 2,)},
    }
    assert aligned(name, student, teacher) == expected[name]


def test_late_of_the_authors_three_and_six_layers() -> None:
    assert aligned("late", 6, 12) == {3: (9,), 4: (10,)}
    assert aligned("late", 3, 12) == {0: (9,), 1: (10,)}


@given(student=DEPTHS, teacher=DEPTHS)
def test_full_uses_every_teacher_layer_once_in_order_and_joins_the_tops(student: int, teacher: int) -> None:
    alignment = aligned("full", student, teacher)
    assert list(chain.from_iterable(alignment.values())) == list(range(teacher))
    assert list(alignment) == sorted(alignment)
    assert max(alignment) == student - 1 and alignment[student - 1][-1] == teacher - 1
    assert len(alignment) == min(student, teacher)
    lengths = [len(layers) for layers in alignment.values()]
    assert max(lengths) - min(lengths) <= 1


@given(student=st.integers(3, 40), teacher=st.integers(3, 40), name=st.sampled_from(ALIGNMENTS))
def test_named_layers_exist_in_both_models(student: int, teacher: int, name: str) -> None:
    alignment = aligned(name, student, teacher)
    assert alignment
    assert all(0 <= layer < student for layer in alignment)
    assert all(0 <= layer < teacher for layer in chain.from_iterable(alignment.values()))


@given(data=st.data(), student=DEPTHS, teacher=DEPTHS)
def test_an_alignment_given_layer_by_layer_is_itself(data: st.DataObject, student: int, teacher: int) -> None:
    named = aligned(data.draw(st.sampled_from(["full", "middle", "first", "last"])), student, teacher)
    assert aligned(named, student, teacher) == named
    downwards = dict(reversed(named.items()))
    assert list(aligned(downwards, student, teacher)) == list(named)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("midle", r"'midle' is not a known alignment \(did you mean middle\?\)"),
        (
            "late",
            "late means the two layers below the last, but the student has 2 layers; use a student of at",
        ),
        ({}, "no layer given"),
        ({2: 0}, "student layers 2 given, but the student has 2; use different indices 0 to 1"),
        ({-1: 0}, "student layers -1 given"),
        ({0: 4}, "teacher layers 4 given, but the teacher has 4; use different indices 0 to 3"),
        ({0: -1}, "teacher layers -1 given"),
        ({0: []}, "teacher layers no layer given"),
        ({0: [1, 0]}, "teacher layers 1, 0 given"),
        ({0: [1, 1]}, "teacher layers 1, 1 given"),
        ({0: [1, 3], 1: 2}, "student layer 0 has teacher layer 3, and student layer 1, above it, has 2"),
    ],
)
def test_what_cannot_be_aligned_is_refused(choice: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        aligned(choice, 2, 4)  # type: ignore[arg-type]  # wrong on purpose


def test_late_needs_a_deep_teacher_too() -> None:
    with pytest.raises(ModelError, match="the teacher has 1 layer; use a teacher of at least 3"):
        aligned("late", 4, 1)


@given(student=DEPTHS, teacher=DEPTHS)
def test_states_are_paired_with_the_top_of_their_run(student: int, teacher: int) -> None:
    pairs = site_pairs("full", student, teacher)
    assert pairs == tuple((s, layers[-1]) for s, layers in aligned("full", student, teacher).items())
    assert pairs[-1] == (student - 1, teacher - 1)


def test_no_pair_comes_twice() -> None:
    assert site_pairs(["middle", {2: 6}, "full", "first"], 4, 12) == (
        (2, 6), (0, 2), (1, 5), (2, 8), (3, 11), (0, 0),
    )  # fmt: skip


def test_last_is_the_bodys_end_of_states_and_the_last_layer_of_maps() -> None:
    assert site_pairs(["last", "embeddings"], 4, 12) == (("last", "last"), ("embeddings", "embeddings"))
    assert layer_pairs(["last", "first"], 4, 12) == ((3, 11), (0, 0))
    with pytest.raises(ModelError, match="embeddings are not a layer"):
        layer_pairs("embeddings", 4, 12)
