"""Forecasts of the gap after longer adaptations: known laws, and how often an interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from stlm_kd.adaptation.gap_forecast import FARTHEST, PowerLaw, forecast, schedule_times

TIMES = [float(time) for time in np.arange(1, 11) * 50_000]


def law(time: float, floor: float = 0.1, factor: float = 60.0, exponent: float = 0.5) -> float:
    return floor + factor * time**-exponent


def test_a_law_without_noise_is_found_and_inverted() -> None:
    found = forecast([(time, law(time)) for time in TIMES], gap=law(TIMES[-1]), own=6.0)
    assert not found.fault and found.points == 10 and found.wanted == pytest.approx(0.12)
    assert found.expected[-1].tokens == 10 * TIMES[-1]  # as far ahead as the first point lies back
    for one in found.expected:
        assert one.gap == pytest.approx(law(one.tokens), abs=2e-3)
        assert one.low <= one.gap <= one.high
    needs = (60 / (0.15 - 0.1)) ** 2
    found = forecast([(time, law(time)) for time in TIMES], gap=law(TIMES[-1]), own=7.5)
    assert found.likely == pytest.approx(needs, rel=0.05)
    assert found.earliest is not None and found.latest is not None
    assert found.earliest <= found.likely <= found.latest
    unreachable = forecast([(time, law(time)) for time in TIMES], gap=law(TIMES[-1]), own=1.0)
    assert unreachable.likely is unreachable.latest is None


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("ahead", [3, 10])
def test_an_interval_holds_the_truth_about_as_often_as_it_says(exponent: float, ahead: int) -> None:
    drawn, trials = np.random.default_rng(0), 100
    truth = [law(time, factor=0.4 * TIMES[0] ** exponent, exponent=exponent) for time in TIMES]
    wanted = law(ahead * TIMES[-1], factor=0.4 * TIMES[0] ** exponent, exponent=exponent)
    held = 0
    for _ in range(trials):
        found = PowerLaw(TIMES, truth + drawn.normal(0, 0.005, len(TIMES))).predict(ahead * TIMES[-1])
        held += found.low <= wanted <= found.high
    assert held / trials >= 0.9


def test_points_that_say_nothing_give_no_numbers() -> None:
    points = [(time, law(time)) for time in TIMES]
    few = forecast(points[:5], gap=0.2, own=1.0)
    assert "validations needed" in few.fault and few.expected == ()
    noise = np.random.default_rng(1).normal(0, 0.05, len(TIMES))
    for fall, fault in ((0.0, "does not fall"), (0.03, "wider")):
        gaps = [0.2 - fall * step + found / (3 if fall else 1) for step, found in enumerate(noise)]
        lost = forecast([*zip(TIMES, gaps, strict=True)], gap=0.2, own=1.0)
        assert fault in lost.fault and lost.expected == () and lost.likely is None


def test_no_forecast_goes_beyond_thirty_times() -> None:
    times = [1e3 * 2**power for power in range(12)]
    found = forecast([(time, law(time)) for time in times], gap=0.2, own=1.0)
    assert found.expected[-1].tokens == round(FARTHEST * times[-1])


def test_times_follow_the_sum_of_the_rates() -> None:
    assert schedule_times([1.0] * 4, [1, 2, 4], 10.0) == [10, 20, 40]
    assert schedule_times([3.0, 1.0], [1, 2], 10.0) == [15, 20]
