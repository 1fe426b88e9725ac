"""Checks of a row's suites: they are the recipe's, with its options, on the data that the lock names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stlm_kd.artifacts.results import Row, SuiteResult
from stlm_kd.eval import SUITES
from stlm_kd.eval.fine_tuning.glue import SUITE as GLUE
from stlm_kd.eval.fine_tuning.glue import Glue, scored_parts
from stlm_kd.pipeline.stages.score import SuiteCall, labels, suite_calls
from stlm_kd.publishing.verify.report import Finding, contradiction, listed
from stlm_kd.publishing.verify.score_checks import close
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.lock import Lock

_OPTIONS = {"window", "stride", "share", "seed", "top"}
"""Options of suites that their reports repeat."""

_GROUP = "stlm"
"""A name for several tasks of lm-eval."""


def suite_findings(
    recipe: Recipe, lock: Lock | None, row: Row, results: Sequence[SuiteResult], place: str
) -> Iterator[Finding]:
    """What does not fit the recipe's suites in the results of a row and seed, which ``place`` names."""
    calls = [call for call in suite_calls(recipe) if row.variant or not SUITES[call.suite].teachers]
    by_key: dict[tuple[str, str], list[SuiteResult]] = {}
    for result in results:
        by_key.setdefault((result.suite, result.label), []).append(result)
    wanted = dict(
        zip(((c.suite, label) for c, label in zip(calls, labels(calls), strict=True)), calls, strict=True)
    )
    if by_key.keys() != wanted.keys():
        claimed, expected = (listed(" ".join(key).strip() for key in keys) for keys in (by_key, wanted))
        yield contradiction(place, "not the recipe's suites", claimed, expected)
        return
    for key, call in wanted.items():
        here = f"{place}: {' '.join(key).strip()}"
        for result in by_key[key]:
            yield from _data_findings(result, lock, here)
            for name in _OPTIONS & result.report.keys():
                scored, asked = result.report[name], call.resolved.get(name)
                if asked is not None and scored != asked:
                    yield contradiction(here, f"scored with another {name}", scored, asked)
        if SUITES[call.suite].fine_tunes:
            yield from _tuning_findings(call, by_key[key], here)
        elif len(by_key[key]) != 1:
            yield Finding(here, f"{len(by_key[key])} results of one call of the suite")
        elif call.suite == "lm-eval":
            yield from _harness_findings(call, by_key[key][0], here)


def _data_findings(result: SuiteResult, lock: Lock | None, here: str) -> Iterator[Finding]:
    """The data sets of a suite are those that the lock names."""
    locked: dict[str, str] = {}
    for place, suite in (lock.eval if lock is not None else {}).items():
        name, _, task = place.partition(":")
        if name == result.suite:
            locked |= suite.data
            locked |= {} if suite.local is None else {task: suite.local.removeprefix("sha256:")}
    for name, version in result.data.items() if locked else ():
        if locked.get(name) != version:
            yield contradiction(
                here, f"not the version of {name} that the lock names", locked.get(name), version
            )


def _tuning_findings(call: SuiteCall, results: Sequence[SuiteResult], here: str) -> Iterator[Finding]:
    """Every seed of the fine-tuning is there, with the settings that the recipe has."""
    seeds = sorted({seed for result in results if isinstance(seed := result.tuning_seed, int)})
    wanted = [*range(1, call.options["seeds"] + 1)]
    if seeds != wanted:
        yield contradiction(here, "not the seeds of its fine-tunings", listed(seeds), listed(wanted))
    for seed in seeds if call.suite == GLUE else ():
        own = [one for one in results if one.tuning_seed == seed and not is_average(one)]
        tasks = [task for one in own for task in dict.fromkeys(score.task for score in one.scores)]
        asked = [part for task in call.options["tasks"] for part in scored_parts(task)]
        if sorted(tasks) != sorted(asked):
            message = f"not the tasks of fine-tuning {seed}"
            yield contradiction(here, message, listed(sorted(tasks)), listed(sorted(asked)))
    steps = call.options.get("steps")
    taken = {found for result in results if isinstance(found := _tuning(result).get("steps"), int)}
    if steps is not None and taken - {steps}:
        yield contradiction(here, "not the steps of its fine-tunings", listed(sorted(taken)), str(steps))


def _harness_findings(call: SuiteCall, result: SuiteResult, here: str) -> Iterator[Finding]:
    tasks = {score.task for score in result.scores if score.part_of is None}
    asked = {*call.options["tasks"]}
    if missing := sorted(asked - {_GROUP} - tasks):
        yield Finding(here, f"no score of {listed(missing)}, which the recipe asks for")
    elif _GROUP not in asked and (more := sorted(tasks - asked)):
        yield Finding(here, f"scores of {listed(more)}, which the recipe does not ask for")
    config: Any = result.report.get("config")
    config = config if isinstance(config, Mapping) else {}
    if config.get("limit") != call.options.get("limit"):
        limits = (config.get("limit"), call.options.get("limit"))
        yield contradiction(
            here, "not the recipe's limit of examples", *(str(one or "none") for one in limits)
        )
    trial = any("a trial, not a score to report" in note for note in result.notes)
    if trial != (call.options.get("limit") is not None):
        yield Finding(here, "its notes and the recipe's limit of examples contradict each other")


def average_findings(results: Sequence[SuiteResult], place: str) -> Iterator[Finding]:
    """The averages over GLUE's tasks follow from their scores."""
    tuned = [result for result in results if result.suite == GLUE]
    for average in filter(is_average, tuned):
        here, key = f"{place}: {GLUE} average", (average.label, average.tuning_seed)
        others = [one for one in tuned if one is not average]
        parts = [one for one in others if (one.label, one.tuning_seed) == key]
        expected = Glue.average(parts).scores[0] if parts else None
        (claimed,) = average.scores
        fits = expected is not None and close(claimed.value, expected.value)
        if expected is None or not (fits and close(claimed.stderr, expected.stderr)):
            found = None if expected is None else expected.value
            yield contradiction(here, "it is not the average of its tasks", claimed.value, found)


def is_average(result: SuiteResult) -> bool:
    """Whether a result is the average over GLUE's tasks, which has no examples of its own."""
    return [score.metric for score in result.scores] == ["average"]


def first_difference(claimed: Any, expected: Any, place: str = "") -> tuple[str, object, object] | None:
    """The first place at which two JSON values differ beyond rounding; keys that the first lacks may be."""
    if isinstance(claimed, Mapping) and isinstance(expected, Mapping):
        pairs = [(f"{place}.{key}", value, expected.get(key)) for key, value in claimed.items()]
    elif isinstance(claimed, list | tuple) and isinstance(expected, list | tuple):
        if len(claimed) != len(expected):
            return place.strip(".") or "its length", len(claimed), len(expected)
        both = enumerate(zip(claimed, expected, strict=True))
        pairs = [(f"{place}.{at}", one, other) for at, (one, other) in both]
    elif _is_number(claimed) and _is_number(expected):
        return None if close(claimed, expected) else (place.strip("."), claimed, expected)
    else:
        return None if claimed == expected else (place.strip("."), claimed, expected)
    found = (first_difference(one, other, where) for where, one, other in pairs)
    return next((one for one in found if one is not None), None)


def _tuning(result: SuiteResult) -> Mapping[str, Any]:
    found: Any = result.report.get("fine_tuning")
    return found if isinstance(found, Mapping) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
