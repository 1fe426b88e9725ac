"""Scores and results of evaluation suites, and rows of a run's table."""

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
"""A count; implausibly large values raise an error on reading."""

SIGNIFICANCE, POWER = 0.05, 0.8
"""Parameters of the two-sided paired test that defines ``Score.detectable``."""

LARGEST = 1e150
"""The largest number to compute with; its square fits into a float."""


UNIFORM = "degenerate: gives every token the same probability"
"""The value of ``Score.degenerate`` for such a language model."""


def measurable(value: float) -> bool:
    """Whether a number can be used in means, deviations and axes.

    >>> [measurable(value) for value in (-2.5, math.nan, math.inf, 1e200)]
    [True, False, False, False]
    """
    return abs(value) <= LARGEST


def _computable(value: float) -> float:
    """The number, or infinity if it is too large to compute with."""
    return value if measurable(value) or math.isnan(value) else math.copysign(math.inf, value)


Measured = Annotated[float, AfterValidator(_computable)]
"""A measured value, which may be NaN or infinite."""


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one task.

    Attributes:
        task: The task's name.
        metric: The metric's name (``acc``, ``bits_per_byte``).
        value: The metric over all examples.
        stderr: Its standard error; None where there is no estimate (as with a single example).
        examples: Number of examples.
        higher_is_better: Whether higher values are better.
        choices: Number of choices, in most examples; None for tasks without choices.
        chance: The score of random guessing on these examples; None for tasks without choices.
        part_of: The task that this one is a part of; None for a requested task.
        degenerate: Why the model's predictions are degenerate, in words; otherwise None.
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
        """The value scaled to chance at 0 and the best at 1; None without choices, or if chance is 1.

        >>> Score("t", "acc", 0.625, None, 8, chance=0.25).centred
        0.5
        """
        if self.chance is None or self.chance >= 1:
            return None
        return (self.value - self.chance) / (1 - self.chance)

    @property
    def is_at_chance(self) -> bool:
        """Whether the lower end of the value's 95 % interval is at or below chance.

        >>> [Score("t", "acc", value, 0.01, 99, chance=0.5).is_at_chance for value in (0.51, 0.4, 0.53)]
        [True, True, False]
        """
        if self.chance is None or self.stderr is None:
            return False
        return self.value - NormalDist().inv_cdf(1 - SIGNIFICANCE / 2) * self.stderr <= self.chance

    @property
    def detectable(self) -> float | None:
        """The minimum detectable difference between two models on these examples.

        A paired, two-sided test at .05 detects it with power .8, if both models have this standard error and
        independent errors: (z(.975) + z(.8)) √2 times the standard error. Smaller differences are detectable
        if the models' errors are correlated. None if the standard error is 0 or unknown.
        """
        if not self.stderr or not math.isfinite(self.stderr):
            return None
        normal = NormalDist()
        return (normal.inv_cdf(1 - SIGNIFICANCE / 2) + normal.inv_cdf(POWER)) * math.sqrt(2) * self.stderr


@dataclass(frozen=True, slots=True)
class ExampleScore:
    """One metric of one example; ``id`` identifies the example in its task."""

    task: str
    id: str
    metric: str
    value: Measured


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The scores of one model in one suite.

    Attributes:
        suite: The suite's name.
        scores: All scores; those with ``part_of`` None were requested.
        examples: Scores per example, for paired comparisons.
        notes: Notes for readers of the scores, one sentence each.
        report: The suite's own report, ready for JSON; in lm-eval's format for ``lm-eval``.
        label: Distinguishes several calls of one suite, as in ``window 64``.
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
        """The result, ready for ``json.dumps``; the inverse of ``from_json``."""
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
        """Parse the output of ``to_json``.

        Raises:
            pydantic.ValidationError: The content is invalid.

        >>> result = SuiteResult("toy", (Score("t", "acc", 0.5, None, 2),))
        >>> SuiteResult.from_json(result.to_json()) == result
        True
        """
        return _SAVED.validate_python(content).result()


@dataclass(frozen=True, slots=True)
class SavedSuite:
    """The output of ``SuiteResult.to_json`` in a file; examples: task, id, metric, value."""

    suite: str
    scores: tuple[Score, ...]
    examples: tuple[tuple[str, str, str, Measured], ...]
    notes: tuple[str, ...]
    report: dict[str, JsonValue]
    label: str = ""

    def result(self) -> SuiteResult:
        """The saved result."""
        examples = tuple(ExampleScore(*row) for row in self.examples)
        report: Mapping[str, Json] = self.report  # type: ignore[assignment]  # the same type, named twice
        return SuiteResult(self.suite, self.scores, examples, self.notes, report, self.label)


_SAVED: TypeAdapter[SavedSuite] = TypeAdapter(SavedSuite)


@dataclass(frozen=True, slots=True)
class Row:
    """A table row: a teacher, or a student or control with all its seeds.

    Attributes:
        name: The row's name in the table.
        kind: ``teacher``, ``adapted``, ``student`` or ``control``.
        variant: The folder name of a student or control; None for a teacher.
        teaches: Whether the student is distilled from this model.
        parameters: Number of parameters.
        tokens_of_text: Tokens of the training text in the model's vocabulary, each counted once; None for a
            model trained elsewhere. Like tokens seen, steps and FLOPs, the maximum over seeds.
        tokens_seen: Training tokens, repeats counted; None for a model trained elsewhere.
        steps: Optimizer steps; None for a model trained elsewhere.
        flops: Training FLOPs, including a student's teachers (``pipeline.builders.flops``); None if unknown.
        seeds: The students' seeds; () for a teacher.
        scores: The suites' results for each seed (one entry for a teacher).
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
"""The recipe's student, or one of its controls, which have no teachers.

All have the same number of steps, except ``equal-compute``, which matches the FLOPs of the student and its
teachers.
"""
