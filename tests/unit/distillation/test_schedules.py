"""Numbers that change while a model is trained, against values computed by hand."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.schedules import Ramp, Schedule, Steps, at, is_ever_above_zero

SHARE = st.integers(0, 100).map(lambda hundredth: hundredth / 100)
VALUE = st.floats(-10, 10)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("linear", [2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0]),
        ("cosine", [2.0, 2.0, 4 - math.sqrt(2), 4.0, 4 + math.sqrt(2), 6.0, 6.0]),
    ],
)
def test_a_ramp_goes_from_one_value_to_the_other_between_its_shares(
    shape: Literal["linear", "cosine"], expected: list[float]
) -> None:
    ramp = Ramp(shape, 2.0, 6.0, 0.2, 0.6)
    shares = [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0]
    assert [ramp.at(share) for share in shares] == pytest.approx(expected, abs=1e-12)


def test_a_ramp_without_shares_takes_the_whole_training() -> None:
    assert [Ramp("linear", 1.0, 0.0).at(step / 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


@given(st.sampled_from(["linear", "cosine"]), VALUE, VALUE, SHARE, SHARE, SHARE)
def test_a_ramp_stays_between_its_values_which_it_has_at_its_ends(
    shape: Literal["linear", "cosine"], first: float, last: float, one: float, two: float, share: float
) -> None:
    begin, end = sorted((one, two))
    if begin == end:
        return
    ramp = Ramp(shape, first, last, begin, end)
    assert (ramp.at(begin), ramp.at(0.0)) == (first, first)
    assert (ramp.at(end), ramp.at(1.0)) == pytest.approx((last, last), abs=1e-12)
    assert min(first, last) - 1e-12 <= ramp.at(share) <= max(first, last) + 1e-12
    middle = ramp.at((begin + end) / 2)
    assert middle == pytest.approx((first + last) / 2, abs=1e-6)


def test_steps_take_the_next_value_at_their_shares_and_not_before() -> None:
    steps = Steps(((0.0, 1.0), (0.3, 0.5), (0.6, 0.0)))
    before = math.nextafter(0.3, 0)
    shares = [0.0, before, 0.3, 0.59, 0.6, 1.0]
    assert [steps.at(share) for share in shares] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]


def test_a_number_is_the_same_at_any_time() -> None:
    assert {at(0.25, share) for share in (0.0, 0.5, 1.0)} == {0.25}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0.0, False),
        (0.1, True),
        (Ramp("linear", 0.0, 0.0), False),
        (Ramp("linear", 0.0, 0.1), True),
        (Ramp("cosine", 0.1, 0.0), True),
        (Steps(((0.0, 0.0), (0.5, 0.0))), False),
        (Steps(((0.0, 0.0), (0.5, 0.2))), True),
    ],
)
def test_a_weight_that_is_never_above_zero_is_known(number: float | Schedule, expected: bool) -> None:
    assert is_ever_above_zero(number) is expected
