"""What more adaptation would give: a power law of the gap to the own vocabulary, with its uncertainty.

The gap after t tokens is g∞ + a·t^(−b). Given b the law is linear in g∞ and a, so predictions for each b are
exact Student's t distributions; they are averaged over a grid of b by their marginal likelihoods (flat in g∞
and in the fall over the points, Jeffreys' prior of the noise). Small b, which are almost a straight line over
log t, are in the grid, so an interval grows with the distance from the points.

Shapes: N points, B exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stlm_kd.artifacts.reports import GapForecast, Remaining
from stlm_kd.lazy import np, special

if TYPE_CHECKING:
    import numpy.typing as npt

FEWEST_POINTS = 6
"""Validations after the first step that a fit needs: three constants, and three for their noise."""

FARTHEST = 30.0
"""The most by which a forecast goes beyond the last point, as a factor of its tokens."""

WANTED = 0.02
"""The gap to reach, as a share of the score with the teacher's own vocabulary."""

_EXPONENTS = (0.05, 2.0, 79)
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Prediction:
    """A median and the ends of its central 95 % interval."""

    value: float
    low: float
    high: float


class PowerLaw:
    """The law g∞ + a·t^(−b) fitted to at least four points, with t > 0 and gaps in any unit."""

    def __init__(self, times_N: Sequence[float], gaps_N: Sequence[float]) -> None:
        assert len(times_N) == len(gaps_N) >= 4 and min(times_N) > 0
        self._scale = max(times_N)
        self._exponents_B = np.linspace(*_EXPONENTS)
        log_N, gaps = np.log(np.asarray(times_N, np.float64) / self._scale), np.asarray(gaps_N, np.float64)
        x_BN = np.exp(-self._exponents_B[:, None] * log_N)
        self._mean_B, self._gap = x_BN.mean(1), float(gaps.mean())
        centred_BN, centred_N = x_BN - self._mean_B[:, None], gaps - self._gap
        self._spread_B = (centred_BN**2).sum(1)
        self._slope_B = centred_BN @ centred_N / self._spread_B
        left_BN = centred_N - self._slope_B[:, None] * centred_BN
        least = 1e-12 * max(float((centred_N**2).sum()), 1e-30)
        squares_B = np.maximum((left_BN**2).sum(1), least)
        self._number, self._freedom = len(gaps), len(gaps) - 2
        self._noise_B = np.sqrt(squares_B / self._freedom)
        weights_B = -0.5 * np.log(self._spread_B) - 0.5 * self._freedom * np.log(squares_B)
        weights_B = weights_B + np.log(np.ptp(x_BN, axis=1))
        self._weights_B = np.exp(weights_B - weights_B.max())
        self._weights_B /= self._weights_B.sum()

    def predict(self, time: float) -> Prediction:
        """The law's value at a time, without the noise of a measurement."""
        probability = self._distribution(time)
        tail = (1 - _CONFIDENCE) / 2
        ends = self._bracket(time)
        value, low, high = (_inverse(probability, p, *ends) for p in (0.5, tail, 1 - tail))
        return Prediction(value, low, high)

    def _moments(self, time: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """By exponent, the predicted value and its standard error."""
        away_B = (time / self._scale) ** -self._exponents_B - self._mean_B
        errors_B = self._noise_B * np.sqrt(1 / self._number + away_B**2 / self._spread_B)
        return self._gap + self._slope_B * away_B, errors_B

    def _distribution(self, time: float) -> Callable[[float], float]:
        values_B, errors_B = self._moments(time)

        def probability(gap: float) -> float:
            return float(self._weights_B @ special.stdtr(self._freedom, (gap - values_B) / errors_B))

        return probability

    def _bracket(self, time: float) -> tuple[float, float]:
        values_B, errors_B = self._moments(time)
        likely = self._weights_B > 1e-9
        wide = 1e4 * errors_B[likely]
        return float((values_B[likely] - wide).min()), float((values_B[likely] + wide).max())


def _inverse(probability: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where an increasing function takes a value, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < wanted else (low, middle)
    return (low + high) / 2


def forecast(points: Sequence[tuple[float, float]], *, gap: float, own: float) -> GapForecast:
    """What longer adaptations of the same kind would leave of the gap, as far as the points carry.

    Args:
        points: For each validation after the first step, tokens and gap, tokens ascending. The tokens are
            those of a whole training: with a falling learning rate, see ``schedule_times``.
        gap: The gap of the kept rows.
        own: The score with the teacher's own vocabulary.

    The forecast goes at most as far beyond the last point as the first lies before it, and at most
    ``FARTHEST`` times as far. It has a ``fault`` in place of numbers where the points say nothing.
    """
    made = GapForecast(points=len(points), gap=gap, wanted=WANTED * own)
    if len(points) < FEWEST_POINTS:
        return made.without(f"{FEWEST_POINTS} validations needed; lower validate_every")
    times, gaps = zip(*points, strict=True)
    law, last = PowerLaw(times, gaps), times[-1]
    limit = last * min(FARTHEST, last / times[0])
    if law.predict(times[0]).low <= law.predict(last).high:
        return made.without("their loss does not fall clearly")
    after = law.predict(limit)
    if after.high - after.low > max(gaps) - min(gaps):
        return made.without("the interval is wider than all that training gained")
    steps = [last * (limit / last) ** share for share in (0.5, 1.0)]
    expected = tuple(_remaining(law.predict(time), time) for time in steps)
    earliest, likely, latest = (
        _first_time(law, made.wanted, end, last, limit) for end in ("low", "value", "high")
    )
    return replace(made, expected=expected, earliest=earliest, likely=likely, latest=latest)


def schedule_times(rates: Sequence[float], steps: Sequence[int], tokens_per_step: float) -> list[float]:
    """For each number of steps, the tokens of a whole training with as much learning rate as they had.

    A falling rate moves the weights little in its last steps, so the sum of the rates is the law's time. It
    is scaled so that all of ``rates``, one for each step of the schedule, are the training's tokens.

    >>> schedule_times([2.0, 2.0, 0.0, 0.0], [1, 4], 100.0)
    [200.0, 400.0]
    """
    done = [0.0, *np.cumsum(np.asarray(rates, np.float64)).tolist()]
    return [tokens_per_step * len(rates) * done[step] / done[-1] for step in steps]


def _remaining(found: Prediction, time: float) -> Remaining:
    return Remaining(round(time), found.value, found.low, found.high)


def _first_time(law: PowerLaw, wanted: float, end: str, last: float, limit: float) -> int | None:
    """The tokens, up to ``limit``, from which on an end of the prediction is at most ``wanted``; or None."""

    def is_reached(time: float) -> bool:
        return bool(getattr(law.predict(time), end) <= wanted)

    if not is_reached(limit):
        return None
    low, high = math.log(last), math.log(limit)
    if is_reached(last):
        return round(last)
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if is_reached(math.exp(middle)) else (middle, high)
    return math.ceil(math.exp(high))
