"""What every suite hands back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Le
from pydantic import AfterValidator, JsonValue, TypeAdapter

Json: TypeAlias = "Mapping[str, Json] | list[Json] | str | int | float | bool | None"
Count = Annotated[int, Ge(0), Le(10**30)]
"""How many; more than any machine counts is refused where it is read."""

SIGNIFICANCE, POWER = 0.05, 0.8
"""Of the two-sided paired test by which ``Score.detectable`` is defined."""

LARGEST = 1e150
"""Of a number that is computed with: its square is one that a float holds."""


UNIFORM = "degenerate: gives every token the same probability"
"""Said of a language model in ``Score.degenerate``."""


def measurable(value: float) -> bool:
    """Whether a mean, a deviation and an axis can be made of a number.

    >>> [measurable(value) for value in (-2.5, math.nan, math.inf, 1e200)]
    [True, False, False, False]
    """
    return abs(value) <= LARGEST


def _computable(value: float) -> float:
    """The number, or an infinite one where it is beyond what is computed with."""
    return value if measurable(value) or math.isnan(value) else math.copysign(math.inf, value)


Measured = Annotated[float, AfterValidator(_computable)]
"""A score as a model has it, which may be no number, or infinite."""


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task.

    Attributes:
        task: The task's name.
        metric: The metric's name (``acc``, ``bits_per_byte``).
        value: The metric over all examples.
        stderr: Its standard error; None where there is no estimate (as with a single example).
        examples: How many examples it is over.
        higher_is_better: Which way the metric points.
        choices: The number of answers to choose from, at most examples; None where nothing is chosen.
        chance: What guessing scores on these examples; None where nothing is chosen.
        part_of: The task that this one is a part of; None for a task that was asked for.
        degenerate: Why the model tells no examples apart, in words; None of any other model.
    """

    task: str
    metric: str
    value: Measured
    stderr: Measured | None
    examples: Count
    higher_is_better: bool = True
    choices: Count | None = None
    chance: Measured | None = None
    part_of: str | None = None
    degenerate: str | None = None

    @property
    def centred(self) -> float | None:
        """The value with guessing at 0 and the best at 1; None where nothing is chosen, or guessing is right.

        >>> Score("t", "acc", 0.625, None, 8, chance=0.25).centred
        0.5
        """
        if self.chance is None or self.chance >= 1:
            return None
        return (self.value - self.chance) / (1 - self.chance)

    @property
    def is_at_chance(self) -> bool:
        """Whether guessing reaches the value, or the upper half of its 95 % interval around chance does.

        >>> [Score("t", "acc", value, 0.01, 99, chance=0.5).is_at_chance for value in (0.51, 0.4, 0.53)]
        [True, True, False]
        """
        if self.chance is None or self.stderr is None:
            return False
        return self.value - NormalDist().inv_cdf(1 - SIGNIFICANCE / 2) * self.stderr <= self.chance

    @property
    def detectable(self) -> float | None:
        """The smallest difference that a comparison of two models on these examples detects.

        A paired, two-sided test at .05 finds it with power .8, if both models have this standard error and
        their errors are independent: (z(.975) + z(.8)) √2 times the standard error. Where models err alike,
        smaller differences are found. None where the standard error is 0 or unknown.
        """
        if not self.stderr or not math.isfinite(self.stderr):
            return None
        normal = NormalDist()
        return (normal.inv_cdf(1 - SIGNIFICANCE / 2) + normal.inv_cdf(POWER)) * math.sqrt(2) * self.stderr


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """One metric of one example; ``id`` is the example's place in its task."""

    task: str
    id: str
    metric: str
    value: Measured


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The scores of one model in one suite.

    Attributes:
        suite: The suite's name.
        scores: All scores; those with ``part_of`` None are what was asked for.
        examples: The scores of single examples, for paired comparisons.
        notes: What a reader of the numbers must know, one sentence each.
        report: The suite's own report, ready for JSON; in lm-eval's layout for ``lm-eval``.
        label: What tells it apart where one suite is asked for several times, as in ``window 64``.
    """

    suite: str
    scores: tuple[Score, ...]
    examples: tuple[ExampleScore, ...] = ()
    notes: tuple[str, ...] = ()
    report: Mapping[str, Json] = field(default_factory=dict)
    label: str = ""

    def score(self, task: str, metric: str) -> Score:
        """The score of a task in a metric.

        Raises:
            KeyError: The suite has no such score.
        """
        for score in self.scores:
            if (score.task, score.metric) == (task, metric):
                return score
        raise KeyError(f"{self.suite}: no {metric} of {task}")

    def to_json(self) -> dict[str, Json]:
        """Everything, ready for ``json.dumps``; ``from_json`` reads it back."""
        return {
            "suite": self.suite,
            "scores": [
                asdict(score) | {"centred": score.centred, "detectable": score.detectable}
                for score in self.scores
            ],
            "examples": [[row.task, row.id, row.metric, row.value] for row in self.examples],
            "notes": list(self.notes),
            "report": self.report,
            "label": self.label,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> SuiteResult:
        """What ``to_json`` made.

        Raises:
            pydantic.ValidationError: It is something else.

        >>> result = SuiteResult("toy", (Score("t", "acc", 0.5, None, 2),))
        >>> SuiteResult.from_json(result.to_json()) == result
        True
        """
        return _SAVED.validate_python(content).result()


@dataclass(frozen=True, slots=True)
class SavedSuite:
    """What ``SuiteResult.to_json`` made, as it stands in a file; examples: task, id, metric, value."""

    suite: str
    scores: tuple[Score, ...]
    examples: tuple[tuple[str, str, str, Measured], ...]
    notes: tuple[str, ...]
    report: dict[str, JsonValue]
    label: str = ""

    def result(self) -> SuiteResult:
        """What was saved."""
        examples = tuple(ExampleScore(*row) for row in self.examples)
        report: Mapping[str, Json] = self.report  # type: ignore[assignment]  # the same type, named twice
        return SuiteResult(self.suite, self.scores, examples, self.notes, report, self.label)


_SAVED: TypeAdapter[SavedSuite] = TypeAdapter(SavedSuite)


@dataclass(frozen=True, slots=True)
class Row:
    """A teacher, or a student with all its seeds.

    Attributes:
        name: As the table calls it.
        kind: ``teacher``, ``adapted``, ``student`` or ``control``.
        variant: Of a student or control, the name of its folder; None for a teacher.
        teaches: Whether the student learns from this very model.
        parameters: Of the model.
        tokens_of_text: Tokens of its training text, each once, in the vocabulary that it reads; None where a
            model was trained elsewhere. Of several seeds the most, as of tokens seen, steps and FLOPs.
        tokens_seen: Tokens read in training, repeats counted; None where a model was trained elsewhere.
        steps: Optimizer steps of its training; None where a model was trained elsewhere.
        flops: What that computed, a student's teachers included (``run.compute``); None where it is unknown.
        seeds: The students' seeds; () for a teacher.
        scores: For each seed (a teacher has one entry), what the suites said.
    """

    name: str
    kind: str
    parameters: int
    tokens_of_text: int | None
    tokens_seen: int | None
    seeds: tuple[int, ...]
    scores: tuple[tuple[SuiteResult, ...], ...]
    variant: str | None = None
    teaches: bool = False
    steps: int | None = None
    flops: int | None = None


Variant = Literal["student", "no-teacher", "all-data", "equal-compute"]
"""The recipe's own student, or one of its controls, which have no teachers.

They have the same number of steps; ``equal-compute`` has as many as the student and its teachers computed.
"""
