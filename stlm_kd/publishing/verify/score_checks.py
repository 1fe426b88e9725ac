"""Checks of one result: its scores follow from its examples, lie in range, and its texts are all there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.comparison.smallest import CORRELATIONS, SHARES
from stlm_kd.errors import DataError
from stlm_kd.publishing.verify.recompute import COMPUTED, recomputed, values_of
from stlm_kd.publishing.verify.report import Finding, contradiction

LOSSES = (
    "bits_per_byte", "pseudo_bits_per_byte", "perplexity", "pseudo_perplexity", "masked_loss", "kl", "js",
    "mean_squared_error", "word_perplexity", "byte_perplexity",
)  # fmt: skip
"""Metrics from 0 up, of which less is better."""

_RANGES: Mapping[str, tuple[float, float, bool]] = {
    **dict.fromkeys(SHARES, (0.0, 1.0, True)),
    **dict.fromkeys((*CORRELATIONS, "average"), (-1.0, 1.0, True)),
    **dict.fromkeys(LOSSES, (0.0, math.inf, False)),
}
"""The lowest and highest value of each metric, and whether more is better."""

_HASH = re.compile(r"[0-9a-f]{32}")
_COMPARED = ("value", "stderr", "examples", "higher_is_better", "choices", "chance", "degenerate")


def close(one: float | None, other: float | None, *, relative: float = 1e-9, absolute: float = 1e-12) -> bool:
    """Whether two numbers are equal up to rounding; NaN equals NaN, and no number one beyond all floats."""
    if one is None or other is None:
        return one is other
    try:
        return math.isclose(one, other, rel_tol=relative, abs_tol=absolute) or (
            math.isnan(one) and math.isnan(other)
        )
    except OverflowError:  # an integer
        return one == other


def score_findings(result: SuiteResult, place: str) -> Iterator[Finding]:
    """What does not fit in a result; ``place`` names its row and seed."""
    here = f"{place}: {result.suite}{f' ({result.label})' if result.label else ''}"
    for score in result.scores:
        yield from _range_findings(score, here)
    yield from _text_findings(result, here)
    yield from _harness_findings(result, here)
    try:
        again = recomputed(result)
    except DataError as error:
        refutes = result.suite in COMPUTED and (bool(result.texts) or result.suite in _ALWAYS)
        yield Finding(here, f"its scores do not follow from its examples: {error}", refutes=refutes)
        return
    known = {(score.task, score.metric): score for score in again.scores}
    missing = []
    for score in result.scores:
        found = known.get((score.task, score.metric))
        if found is not None:
            yield from _unlike_scores(score, found, here)
        elif score.part_of is None or result.suite == "lm-eval":
            missing.append(f"{score.task} {score.metric}")
    if missing:
        yield Finding(here, f"not computed again: {', '.join(missing)}", refutes=False)
    yield from _example_findings(result, again, here)
    yield from _block_findings(result, here)


_ALWAYS = {"classification", "regression", "squad", "ner", "lm-eval", "agreement"}
"""Suites whose results have always recorded what their scores follow from; others since they record texts."""


def _range_findings(score: Score, here: str) -> Iterator[Finding]:
    place = f"{here} {score.task} {score.metric}"
    known = _RANGES.get(score.metric)
    if score.stderr is not None and not (score.stderr >= 0 or math.isnan(score.stderr)):
        yield Finding(place, "its standard error is negative", claimed=f"{score.stderr:g}")
    if score.chance is not None and not 0 <= score.chance <= 1:
        yield Finding(place, "its chance is not between 0 and 1", claimed=f"{score.chance:g}")
    if known is None:
        return
    low, high, higher = known
    if not low - 1e-9 <= score.value <= high + 1e-9:
        yield Finding(place, f"outside {low:g} to {high:g}", claimed=f"{score.value:g}")
    if score.higher_is_better != higher:
        yield Finding(place, f"{'more' if higher else 'less'} is better in this metric, not the reverse")


def _text_findings(result: SuiteResult, here: str) -> Iterator[Finding]:
    ids: dict[str, set[str]] = {}
    seen: set[tuple[str, str, str]] = set()
    for one in result.examples:
        ids.setdefault(one.task, set()).add(one.id)
        if (key := (one.task, one.id, one.metric)) in seen:
            yield Finding(here, f"example {one.id!r} of {one.task} is there twice ({one.metric})")
            return
        seen.add(key)
    if not result.texts:
        if result.examples:
            message = (
                "its texts are not recorded (scored by an earlier version), so examples are joined by id"
            )
            yield Finding(here, message, refutes=False)
        return
    for task, own in ids.items():
        hashes = result.texts.get(task, {})
        without = sorted(own - hashes.keys())
        more = sorted(hashes.keys() - own) if result.suite != "interchange" else []
        if without:
            yield Finding(here, f"{len(without)} examples of {task} have no text, such as {without[0]!r}")
        if more:
            yield Finding(here, f"{len(more)} texts of {task} have no score, such as {more[0]!r}")
        if any(_HASH.fullmatch(found) is None for found in hashes.values()):
            yield Finding(here, f"a text of {task} has no hash of 32 hexadecimal digits")


def _harness_findings(result: SuiteResult, here: str) -> Iterator[Finding]:
    """lm-eval's own report has these scores, on as many examples, and on all of them without a limit."""
    if result.suite != "lm-eval":
        return
    report: Any = result.report
    counts, config, table = (
        found if isinstance(found := report.get(name), Mapping) else {}
        for name in ("n-samples", "config", "results")
    )
    ids: dict[str, set[str]] = {}
    for one in result.examples:
        ids.setdefault(one.task, set()).add(one.id)
    for task in sorted({*ids, *map(str, counts)}):
        count: Any = counts.get(task)
        original, effective = (
            count.get(key) if isinstance(count, Mapping) else None for key in ("original", "effective")
        )
        found = len(ids.get(task, ()))
        if effective != found:
            yield contradiction(here, f"{task} has other examples", effective, found)
        elif config.get("limit") is None and original != effective:
            message = f"{task} was scored on {effective} of {original} examples, but calls itself whole"
            yield Finding(here, message)
    for score in result.scores:
        own: Any = table.get(score.task)
        named = own.items() if isinstance(own, Mapping) else ()
        values = [value for key, value in named if str(key).partition(",")[0] == score.metric]
        if not any(isinstance(value, int | float) and close(value, score.value) for value in values):
            place = f"{here} {score.task} {score.metric}"
            yield contradiction(place, "lm-eval's own report has another score", score.value, values)


def _unlike_scores(claimed: Score, found: Score, here: str) -> Iterator[Finding]:
    for name in _COMPARED:
        one, other = getattr(claimed, name), getattr(found, name)
        if not (close(one, other) if name in ("value", "stderr", "chance") else one == other):
            place = f"{here} {claimed.task} {claimed.metric}"
            yield contradiction(
                place, f"its {_WORDS.get(name, name)} is not that of its examples", str(one), str(other)
            )


_WORDS = {"stderr": "standard error", "examples": "number of examples", "higher_is_better": "direction"}


def _example_findings(result: SuiteResult, again: SuiteResult, here: str) -> Iterator[Finding]:
    for task, metric in dict.fromkeys((one.task, one.metric) for one in again.examples):
        claimed, found = (values_of(each, task, metric) for each in (result, again))
        unlike = [name for name in found if not close(claimed.get(name), found[name])]
        if unlike or claimed.keys() - found.keys():
            name = (unlike or sorted(claimed.keys() - found.keys()))[0]
            yield contradiction(
                f"{here} {task} {metric}",
                f"{len(unlike)} examples do not follow from the recorded predictions, such as {name!r}",
                str(claimed.get(name)),
                str(found.get(name)),
            )


def _block_findings(result: SuiteResult, here: str) -> Iterator[Finding]:
    """The blocks of text, which comparisons resample, sum up to the examples."""
    blocks: Any = result.report.get("blocks")
    pieces: Any = result.report.get("pieces")
    if not isinstance(blocks, Mapping) or not isinstance(pieces, Mapping):
        return
    metric = "pseudo_bits_per_byte" if result.suite == "pseudo-perplexity" else "bits_per_byte"
    values = [*values_of(result, "text", metric).values()]
    try:
        if result.suite == "pseudo-perplexity":  # a window is a block
            nats = [float(value) for document in blocks["nats"] for value in document]
            sizes = [int(size) for document in blocks["bytes"] for size in document]
        else:
            nats = [math.fsum(document) for document in blocks["nats"]]
            sizes = [sum(document) for document in blocks["bytes"]]
        expected = [value * math.log(2) * size for value, size in zip(values, pieces["bytes"], strict=True)]
        fits = sizes == [*pieces["bytes"]] and _all_close(nats, expected)
        totals = {"bytes": sum(sizes), "nats": math.fsum(nats), "tokens": sum(pieces["tokens"])}
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        yield Finding(here, f"its blocks of text cannot be read ({type(error).__name__})")
        return
    if not fits:
        yield Finding(here, "its blocks of text, which comparisons resample, are not those of its examples")
    if result.suite == "perplexity":
        for name, total in totals.items():
            claimed = result.report.get(name)
            if not isinstance(claimed, int | float) or not close(claimed, total):
                yield contradiction(here, f"its {name} are not those of its pieces", str(claimed), str(total))


def _all_close(one: Sequence[float], other: Sequence[float]) -> bool:
    return len(one) == len(other) and all(map(close, one, other))
