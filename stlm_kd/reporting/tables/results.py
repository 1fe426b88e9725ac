"""The results of a run: a table of its teachers and students, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from stlm_kd.artifacts.results import Row, SuiteResult, Texts, text_hash
from stlm_kd.comparison.metrics import Metric, estimate
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.comparison.score_notes import addition, reading_notes, warning_notes
from stlm_kd.reporting.format import cell, count, flops, noted_table, numbers, words
from stlm_kd.statistics import CONFIDENCE


def result_table(scores: ResultsTable, title: str) -> Table:
    """All rows: means over seeds with intervals, single models with standard errors; suites' notes below."""
    rows, metrics = scores.rows, scores.metrics
    seeds = max((len(row.seeds) for row in rows), default=0)
    over_seeds = f"means over {seeds} seeds ± {CONFIDENCE:.0%} interval (Student's t); " if seeds > 1 else ""
    per_token = ", and losses per token," if any(m.metric == "masked_loss" for m in metrics) else ""
    single = "single models ± standard error over examples"
    most = "; tokens, steps and FLOPs: maximum over seeds" if seeds > 1 else ""
    means = f"{over_seeds}{single}; tokens{per_token} of each row's vocabulary{most}"
    costs = ("parameters", "tokens of text", "tokens seen", "steps", "FLOPs")
    columns = (*words("model"), *numbers(*costs, *(metric.label for metric in metrics)))
    table = noted_table([means, *notes_of(scores, rows)], *columns, title=title)
    for row in rows:
        counts = (row.parameters, row.tokens_of_text, row.tokens_seen, row.steps)
        cells = (_cell(scores, row, metric) for metric in metrics)
        table.add_row(cell(row.name), *map(count, counts), flops(row.flops), *cells)
    return table


def notes_of(scores: ResultsTable, rows: Sequence[Row]) -> list[str]:
    """Notes on some rows' scores, without duplicates: those of suites, degenerate models, chance level."""
    suites = {row.name: [suite for suite in scores.suites if suite.model == row.name] for row in rows}
    notes = [note for each in suites.values() for suite in each for note in suite.notes]
    for name, each in suites.items():
        notes.extend(
            f"{name}: {note}" for note in warning_notes(s for suite in each for s in suite.requested)
        )
    shown = (score for row in rows for metric in scores.metrics for score in scores.scores_of(row, metric))
    return list(dict.fromkeys([*notes, *reading_notes(shown)]))


_FACTS = ("name", "kind", "variant", "parameters", "tokens_of_text", "tokens_seen", "steps", "flops")


def as_json(
    scores: ResultsTable,
    remarks: Sequence[str],
    tokens_by_domain: Mapping[str, int],
    *,
    verdicts: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything, ready for ``json.dumps``; ``verdicts``: the remarks that are verdicts.

    The hashes of texts, which rows share, are written once.
    """
    texts: dict[str, Texts] = {}
    return {
        "rows": [
            {
                **{name: getattr(row, name) for name in _FACTS},
                "seeds": list(row.seeds),
                **({"of": [asdict(one) for one in row.of]} if row.of else {}),
                "estimates": _estimates(scores, row),
                "suites": [[_suite(suite, texts) for suite in suites] for suites in row.scores],
            }
            for row in scores.rows
        ],
        "remarks": list(remarks),
        "verdicts": list(verdicts),
        "tokens_of_text_by_domain": dict(tokens_by_domain),
        **({"texts": texts} if texts else {}),
    }


def _suite(suite: SuiteResult, texts: dict[str, Texts]) -> dict[str, Any]:
    """A result as JSON, with its hashes of texts moved to ``texts``."""
    if not suite.texts:
        return suite.to_json()
    key = text_hash(suite.texts)
    texts[key] = suite.texts
    return {**suite.to_json(), "texts": key}


def _estimates(scores: ResultsTable, row: Row) -> dict[str, Any]:
    found = {metric.name: scores.values(row, metric) for metric in scores.metrics}
    return {label: asdict(estimate(numbers)) for label, numbers in found.items() if numbers}


def _cell(scores: ResultsTable, row: Row, metric: Metric) -> str:
    found = scores.spread(row, metric)
    if found is None:
        return ""
    own = scores.scores_of(row, metric)
    degenerate = next((score.degenerate for score in own if score.degenerate), None)
    return f"{found}{addition(replace(own[0], value=found.mean, degenerate=degenerate))}"
