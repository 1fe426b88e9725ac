"""Scores and results of evaluation suites, and rows of a run's table."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Annotated, Literal, NamedTuple, TypeAlias

from annotated_types import Ge, Le
from pydantic import (
    AfterValidator,
    Field,
    GetPydanticSchema,
    JsonValue,
    TypeAdapter,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

Json: TypeAlias = "Mapping[str, Json] | list[Json] | str | int | float | bool | None"
Report = Annotated[Mapping[str, Json], GetPydanticSchema(lambda _, read: read(dict[str, JsonValue]))]
"""A mapping that JSON can represent; pydantic reads it as ``JsonValue``, the same type and faster."""

Count = Annotated[int, Ge(0), Le(10**30)]
"""A count; implausibly large values raise an error on reading."""

SIGNIFICANCE, POWER = 0.05, 0.8
"""Parameters of the two-sided paired test that defines ``Score.detectable``."""

LARGEST = 1e150  # the largest number to compute with; its square fits into a float

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
    """One metric (such as ``acc`` or ``bits_per_byte``) of one task, over all examples.

    Attributes:
        stderr: Its standard error; None where there is no estimate (as with a single example).
        examples: Number of examples.
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


class ExampleScore(NamedTuple):
    """One metric of one example, a list in JSON; ``id`` identifies the example in its task."""

    task: str
    id: str
    metric: str
    value: Measured


def text_hash(texts: Json) -> str:
    """Identifies an example's text, or texts: 32 hex digits of the SHA-256 of their canonical JSON.

    >>> text_hash("a") == text_hash("a") != text_hash(["a"])
    True
    """
    return hashlib.sha256(json.dumps(texts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def _shared(value: object, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> object:
    """The texts that a file with several results holds once, by their hash, or those of the result."""
    if not isinstance(value, str):
        return read(value)
    if value not in (info.context or {}):
        raise ValueError("expected the hash of texts in the same file")
    return (info.context or {})[value]


Texts = Mapping[str, Mapping[str, str]]
"""The hash of each example's text, by task and id."""


@dataclass(frozen=True, slots=True)
class SuiteResult:
    """The scores of one model in one suite.

    Attributes:
        scores: All scores; those with ``part_of`` None were requested.
        examples: Scores per example, for paired comparisons.
        notes: Notes for readers of the scores, one sentence each.
        report: The suite's own report; in lm-eval's format for ``lm-eval``.
        label: Distinguishes several calls of one suite, as in ``window 64``.
        data: What was read beside the held-out data: the commit of each data set by ``id[@revision]``, or by
            task the hash (64 digits) of what stands for it.
        texts: ``text_hash`` of each example; {} if not recorded.
    """

    suite: str
    scores: tuple[Score, ...]
    examples: tuple[ExampleScore, ...] = ()
    notes: tuple[str, ...] = ()
    report: Report = field(default_factory=dict)
    label: str = ""
    data: Mapping[str, str] = field(default_factory=dict)
    texts: Annotated[Texts, WrapValidator(_shared)] = field(default_factory=dict)

    @property
    def tuning_seed(self) -> Json:
        """The seed of the fine-tuning that was scored; None if not recorded, or there was none."""
        found = self.report.get("fine_tuning")
        return found.get("seed") if isinstance(found, Mapping) else None

    def score(self, task: str, metric: str) -> Score:
        """The score of a task in a metric; KeyError if there is none."""
        for score in self.scores:
            if (score.task, score.metric) == (task, metric):
                return score
        raise KeyError(f"{self.suite}: no {metric} of {task}")

    def to_json(self) -> dict[str, Json]:
        """The result, ready for ``json.dumps``; the inverse of ``from_json``."""
        optional: dict[str, Json] = {"data": self.data, "texts": self.texts}
        return {
            "suite": self.suite,
            "scores": [
                asdict(score) | {"centred": score.centred, "detectable": score.detectable}
                for score in self.scores
            ],
            "examples": [[*row] for row in self.examples],
            "notes": list(self.notes),
            "report": self.report,
            "label": self.label,
            **{key: value for key, value in optional.items() if value},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> SuiteResult:
        """Parse the output of ``to_json``; pydantic.ValidationError if it is invalid.

        >>> result = SuiteResult("toy", (Score("t", "acc", 0.5, None, 2),))
        >>> SuiteResult.from_json(result.to_json()) == result
        True
        """
        return _RESULT.validate_python(content)


_RESULT: TypeAdapter[SuiteResult] = TypeAdapter(SuiteResult)


@dataclass(frozen=True, slots=True)
class ScoredModel:
    """The model that scores belong to.

    Attributes:
        weights: ``sha256:…`` of each of its files with weights; {} for a model of the Hub.
        tokenizer: ``data.tokenizers.tokenizer_identity`` of its tokenizer.
        name: Of a model of the Hub, with its commit; otherwise None.
    """

    weights: Mapping[str, str]
    tokenizer: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A table row: a teacher, a student or control with all its seeds, or a model scored by itself.

    Attributes:
        kind: ``teacher``, ``adapted``, ``student``, ``control`` or ``model``.
        parameters: None for a model scored by itself.
        tokens_of_text: Tokens of the training text in the model's vocabulary, each counted once; None (like
            ``tokens_seen``, which counts repeats, and ``steps``) for a model trained elsewhere. Of all these
            and FLOPs, the maximum over seeds.
        seeds: The seeds of a student or model; () for a teacher, or a single model without a seed.
        scores: The suites' results for each seed (one entry if there are no seeds). Several results of one
            suite and label are several fine-tunings of that seed's model.
        variant: The folder name of a student or control; otherwise None.
        teaches: Whether the student is distilled from this model.
        flops: Training FLOPs, including a student's teachers (``pipeline.builders.flops``); None if unknown.
        source: The run or file that it was read from, as given by the user.
        taught: Whether it was distilled from teachers; None if unknown.
        of: The scored model of each entry of ``scores``; () if not recorded.
    """

    name: str
    kind: str
    parameters: Count | None
    tokens_of_text: Count | None
    tokens_seen: Count | None
    seeds: tuple[int, ...]
    scores: Annotated[tuple[tuple[SuiteResult, ...], ...], Field(alias="suites")]
    variant: str | None = None
    teaches: bool = False
    steps: Count | None = None
    flops: Count | None = None
    source: str = ""
    taught: bool | None = None
    of: tuple[ScoredModel, ...] = ()


Variant = Literal["student", "no-teacher", "all-data", "equal-compute"]
"""The recipe's student, or one of its controls, which have no teachers.

All have the same number of steps, except ``equal-compute``, which matches the FLOPs of the student and its
teachers.
"""
