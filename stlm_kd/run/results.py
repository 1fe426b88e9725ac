"""What a run found: one row for each teacher and student, and its table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.table import Table
from rich.text import Text

from stlm_kd.eval.averaging import averaged
from stlm_kd.eval.results import Score, SuiteResult
from stlm_kd.eval.statistics import CONFIDENCE
from stlm_kd.eval.table import addition, reading_notes, warning_notes
from stlm_kd.run.intervals import Estimate, estimate

MEASURES_TEXT = {
    "perplexity": "bits_per_byte",
    "pseudo-perplexity": "pseudo_bits_per_byte",
    "masked-loss": "masked_loss",
    "classification": "accuracy",
    "regression": "pearson",
}
"""The suites that say how well a model does on the held-out text or examples, and in which metric."""

BITS_PER_BYTE = {"bits_per_byte", "pseudo_bits_per_byte"}
"""Metrics that are ratios of sums over a text: of its nats and bytes."""

PER_TOKEN = {"perplexity", "pseudo_perplexity"}
"""Metrics that no table shows, since they do not compare across vocabularies and bits per byte do."""


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


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of the table: one metric of one task; ``entry`` is the label of the suite's result."""

    suite: str
    entry: str
    task: str
    metric: str
    higher_is_better: bool

    @property
    def label(self) -> str:
        """As the table's head."""
        name = self.metric if self.suite in MEASURES_TEXT else f"{self.task} {self.metric}"
        name += f" ({self.entry})" if self.entry else ""
        return f"{name} {'↑' if self.higher_is_better else '↓'}"


def metrics_of(rows: Iterable[Row]) -> list[Metric]:
    """The metrics that were asked for, without the parts of groups and the perplexities per token."""
    found: dict[Metric, None] = {}
    for row in rows:
        for suites in row.scores:
            for suite in suites:
                for score in suite.scores:
                    if score.part_of is None and score.metric not in PER_TOKEN:
                        found[_metric(suite, score)] = None
    return list(found)


def _metric(suite: SuiteResult, score: Score) -> Metric:
    return Metric(suite.suite, suite.label, score.task, score.metric, score.higher_is_better)


def values(row: Row, metric: Metric) -> list[float]:
    """The metric for each seed; [] where the row has no such score."""
    return [score.value for score in _scores(row, metric)]


def spread(row: Row, metric: Metric) -> Estimate | None:
    """A mean over seeds with its interval; a single model's score with its standard error; None without."""
    found = values(row, metric)
    if len(found) != 1:
        return estimate(found) if found else None
    score = _score(row.scores[0], metric)
    return Estimate(found[0], None if score is None else score.stderr, tuple(found))


def result_table(rows: Sequence[Row], title: str) -> Table:
    """All rows; behind a mean over seeds its interval, behind a single model's score its standard error.

    Notes of the suites stand below the table.
    """
    metrics = metrics_of(rows)
    seeds = max((len(row.seeds) for row in rows), default=0)
    over_seeds = f"means over {seeds} seeds ± {CONFIDENCE:.0%} interval (Student's t); " if seeds > 1 else ""
    per_token = ", and losses per token," if any(m.metric == "masked_loss" for m in metrics) else ""
    single = "single models ± standard error over examples"
    most = "; tokens, steps and FLOPs: of the seed that took most" if seeds > 1 else ""
    means = f"{over_seeds}{single}; tokens{per_token} of each row's vocabulary{most}"
    caption = Text("\n".join([means, *notes_of(rows)]), "table.caption")
    table = Table(title=Text(title, "table.title"), caption=caption, caption_justify="left")
    table.add_column("model")
    for heading in ("parameters", "tokens of text", "tokens seen", "steps", "FLOPs"):
        table.add_column(heading, justify="right")
    for metric in metrics:
        table.add_column(Text(metric.label), justify="right")
    for row in rows:
        counts = (row.parameters, row.tokens_of_text, row.tokens_seen, row.steps)
        shown = ["—" if count is None else f"{count:,}" for count in counts]
        shown.append("—" if row.flops is None else f"{row.flops:.2e}")
        table.add_row(Text(row.name), *shown, *(_cell(row, metric) for metric in metrics))
    return table


def notes_of(rows: Sequence[Row]) -> list[str]:
    """What a reader of the scores must know: notes of suites, degenerate models, chance; each once."""
    suites = {row.name: [suite for results in row.scores for suite in averaged(results)] for row in rows}
    notes = [note for each in suites.values() for suite in each for note in suite.notes]
    for name, each in suites.items():
        asked = [score for suite in each for score in suite.scores if score.part_of is None]
        notes.extend(f"{name}: {note}" for note in warning_notes(asked))
    shown = [score for row in rows for metric in metrics_of([row]) for score in _scores(row, metric)]
    return list(dict.fromkeys([*notes, *reading_notes(shown)]))


def as_json(
    rows: Sequence[Row],
    remarks: Sequence[str],
    tokens_by_domain: Mapping[str, int],
    *,
    verdicts: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, ready for ``json.dumps``; ``verdicts`` are those of the remarks that are verdicts."""
    metrics = metrics_of(rows)
    return {
        "rows": [
            {
                "name": row.name,
                "kind": row.kind,
                "variant": row.variant,
                "parameters": row.parameters,
                "tokens_of_text": row.tokens_of_text,
                "tokens_seen": row.tokens_seen,
                "steps": row.steps,
                "flops": row.flops,
                "seeds": list(row.seeds),
                "estimates": _estimates(row, metrics),
                "suites": [[suite.to_json() for suite in suites] for suites in row.scores],
            }
            for row in rows
        ],
        "remarks": list(remarks),
        "verdicts": list(verdicts),
        "tokens_of_text_by_domain": dict(tokens_by_domain),
    }


def _estimates(row: Row, metrics: Sequence[Metric]) -> dict[str, Any]:
    found = {metric.label[:-2]: values(row, metric) for metric in metrics}
    return {label: asdict(estimate(numbers)) for label, numbers in found.items() if numbers}


def _score(suites: Sequence[SuiteResult], metric: Metric) -> Score | None:
    """The score of a metric, averaged over fine-tunings."""
    for suite in averaged([suite for suite in suites if suite.suite == metric.suite]):
        for score in suite.scores:
            if _metric(suite, score) == metric:
                return score
    return None


def _scores(row: Row, metric: Metric) -> list[Score]:
    """The metric's score for each seed that has it."""
    found = [_score(suites, metric) for suites in row.scores]
    return [score for score in found if score is not None]


def _cell(row: Row, metric: Metric) -> str:
    found = spread(row, metric)
    if found is None:
        return ""
    scores = _scores(row, metric)
    degenerate = next((score.degenerate for score in scores if score.degenerate), None)
    mean = replace(scores[0], value=found.mean, degenerate=degenerate)
    return f"{found}{addition(mean)}"
