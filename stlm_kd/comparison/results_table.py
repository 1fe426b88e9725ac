"""The scores of several models as one long table, which comparisons, tables, pages and cards read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property
from itertools import chain
from statistics import fmean, variance

import pandas as pd

from stlm_kd.artifacts.results import Row, Score, SuiteResult
from stlm_kd.comparison.metrics import PER_TOKEN, Estimate, Metric, estimate

_SCORE = [field.name for field in fields(Score)]
_RESULT = ["model", "kind", "source", "seed", "fine_tuning", "suite", "label", "report", "notes", "content"]
_METRIC = ["suite", "label", "task", "metric", "higher_is_better"]


@dataclass(frozen=True, slots=True)
class SuiteScores:
    """The scores of a model, or one seed of it, in a suite, averaged over fine-tunings, with notes."""

    model: str
    seed: int | None
    suite: str
    label: str
    notes: tuple[str, ...]
    scores: tuple[Score, ...]

    @property
    def requested(self) -> list[Score]:
        """The scores without those of the parts of groups."""
        return [score for score in self.scores if score.part_of is None]


class ResultsTable:
    """The scores of some rows with different names.

    Attributes:
        rows: The rows: their kinds, seeds and costs.
        frame: One line for each score, and for each example of it. Columns: ``model`` (the row's name),
            ``kind``, ``source``, ``seed``; ``fine_tuning``, the seed of a fine-tuning; ``suite`` and its
            ``label``; ``task``, ``metric``, ``value``; ``example``, an id, missing in the score over all
            examples; the other attributes of a ``Score``, missing for an example; the suite's ``report`` and
            ``notes``; ``result``, which numbers the calls of suites, and ``content``, the first equal one.

    >>> result = SuiteResult("toy", (Score("t", "acc", 0.5, None, 2),), (("t", "a", "acc", 1.0),))
    >>> table = ResultsTable([Row("m", "model", None, None, None, (1,), ((result,),))])
    >>> table.frame[["model", "seed", "suite", "task", "metric", "example", "value"]]
      model seed suite task metric example  value
    0     m    1   toy    t    acc    None    0.5
    1     m    1   toy    t    acc       a    1.0
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self._results = results = list[SuiteResult]()
        alike: dict[tuple[Score, ...], list[int]] = {}
        where, lines = [], []
        blank = (None,) * (len(_SCORE) - 3)
        for row in self.rows:
            for seed, own in zip(row.seeds or [None], row.scores, strict=True):
                for result in own:
                    number = len(results)
                    results.append(result)
                    numbers = alike.setdefault(result.scores, [])
                    numbers.append(number)
                    content = next(first for first in numbers if results[first] == result)
                    key = (
                        row.name,
                        row.kind,
                        row.source,
                        seed,
                        result.tuning_seed,
                        result.suite,
                        result.label,
                    )
                    where.append((*key, result.report, result.notes, content))
                    lines += [(number, None, *astuple(score)) for score in result.scores]
                    lines += [(number, name, task, *one, *blank) for task, name, *one in result.examples]
        found = pd.DataFrame(lines, columns=["result", "example", *_SCORE], dtype=object)
        about = pd.DataFrame(where, columns=_RESULT, dtype=object)
        self.frame = found.astype({"value": float}).join(about, on="result")

    @cached_property
    def scores(self) -> pd.DataFrame:
        """The lines of scores, without those of examples."""
        return self.frame[self.frame["example"].isna()]

    @cached_property
    def samples(self) -> Mapping[tuple[str, Metric], pd.DataFrame]:
        """Lines by model and metric, in order of seeds, then fine-tunings; no parts, no ``PER_TOKEN``."""
        requested = self.scores[self.scores["part_of"].isna() & ~self.scores["metric"].isin(PER_TOKEN)]
        grouped = requested.groupby(["model", *_METRIC], sort=False)
        return {(model, Metric(*key)): found for (model, *key), found in grouped}

    @cached_property
    def metrics(self) -> list[Metric]:
        """The requested metrics, without parts of groups and without perplexities per token."""
        return list(dict.fromkeys(metric for _, metric in self.samples))

    @cached_property
    def suites(self) -> list[SuiteScores]:
        """The scores of each model, seed and suite, with a note on averages over several fine-tunings."""
        found = []
        keys = ["model", "seed", "suite", "label"]
        for (model, seed, suite, label), lines in self.scores.groupby(keys, sort=False, dropna=False):
            by_metric: dict[tuple[str | None, ...], list[Score]] = {}
            for score in scores_in(lines):
                by_metric.setdefault((score.task, score.metric, score.part_of), []).append(score)
            means = tuple(map(mean_score, by_metric.values()))
            notes = [*dict.fromkeys(chain.from_iterable(lines["notes"]))]
            if (most := max(map(len, by_metric.values()))) > 1:
                over = f"{most} fine-tunings ± standard error over these and examples"
                notes.append(f"{suite}: means over {over}")
            found.append(SuiteScores(model, seed, suite, label, tuple(notes), means))
        return found

    @cached_property
    def scores_by_seed(self) -> Mapping[tuple[str, Metric], Mapping[int | None, Score]]:
        """The requested scores by model and metric, then by seed, averaged over fine-tunings."""
        found: dict[tuple[str, Metric], dict[int | None, Score]] = {}
        for one in self.suites:
            for score in one.requested:
                metric = Metric(one.suite, one.label, score.task, score.metric, score.higher_is_better)
                found.setdefault((one.model, metric), {})[one.seed] = score
        return found

    def scores_of(self, row: Row, metric: Metric) -> list[Score]:
        """The metric's score for each seed that has it, averaged over fine-tunings."""
        return [*self.scores_by_seed.get((row.name, metric), {}).values()]

    def values(self, row: Row, metric: Metric) -> list[float]:
        """The metric for each seed that has it, averaged over fine-tunings."""
        return [score.value for score in self.scores_of(row, metric)]

    def complete_values(self, row: Row, metric: Metric) -> list[float]:
        """As ``values``; [] unless all seeds have the metric."""
        found = self.values(row, metric)
        return found if len(found) == len(row.scores) else []

    def spread(self, row: Row, metric: Metric) -> Estimate | None:
        """Mean over seeds with interval, or a single model's score with standard error; None if none."""
        found = self.scores_of(row, metric)
        return estimate([score.value for score in found]) if len(found) > 1 else alone(*found)

    def results_of(self, row: Row, metric: Metric, seeds: Sequence[int] | None = None) -> pd.DataFrame:
        """The metric's lines without those of examples, of the given seeds in their order (None: of all)."""
        found = self.samples.get((row.name, metric), self.scores[:0])
        return found if seeds is None else found.set_index("seed", drop=False).loc[[*seeds]]

    @cached_property
    def _examples(self) -> Mapping[int, pd.DataFrame]:
        return dict(iter(self.frame[self.frame["example"].notna()].groupby("result")))

    def examples(self, result: int, task: str) -> pd.DataFrame:
        """All metrics of a task's examples, for a group those of its parts, by the examples' names."""
        found = self._examples.get(result, self.frame[:0])
        leaves = self._leaves(result, task)
        found = found[found["task"].isin(leaves)]
        names = found["example"]
        if leaves != [task]:
            names = names.where(found["task"] == task, found["task"] + " " + names)
        return found.set_index(names)

    def texts(self, result: int, task: str) -> Mapping[str, str]:
        """The hash of each example's text, by the names of ``examples``; {} if not recorded."""
        known = self._results[result].texts
        return {
            name if leaf == task else f"{leaf} {name}": found
            for leaf in self._leaves(result, task)
            for name, found in known.get(leaf, {}).items()
        }

    @cached_property
    def _parts(self) -> Mapping[tuple[int, str], list[str]]:
        return dict(self.scores.groupby(["result", "part_of"], sort=False)["task"].agg(list))

    def _leaves(self, result: int, task: str) -> list[str]:
        """The tasks of a group, or the task itself."""
        parts = self._parts.get((result, task), ())
        return [leaf for part in dict.fromkeys(parts) for leaf in self._leaves(result, part)] or [task]


def alone(score: Score | None = None) -> Estimate | None:
    """A single model's score with its standard error; None if there is none."""
    return None if score is None else Estimate(score.value, score.stderr, (score.value,))


def scores_in(lines: pd.DataFrame) -> list[Score]:
    """The scores in some lines of the table."""
    return [Score(*line) for line in lines[_SCORE].to_numpy().tolist()]


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of a score over fine-tunings.

    Its standard error combines the examples, which all fine-tunings share, and the variation between
    fine-tunings: the square root of the mean squared standard error plus the variance divided by the number
    of fine-tunings.
    """
    if len(scores) == 1:
        return scores[0]
    values, stderr = [score.value for score in scores], None
    squares = [score.stderr**2 for score in scores if score.stderr is not None]
    if len(squares) == len(scores):
        stderr = math.sqrt(fmean(squares) + variance(values) / len(scores))
    degenerate = next((score.degenerate for score in scores if score.degenerate), None)
    return replace(scores[0], value=fmean(values), stderr=stderr, degenerate=degenerate)
