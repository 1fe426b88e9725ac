"""A table of vocabulary adaptations."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from stlm_kd.artifacts.reports import MEASURES, AdaptationReport, init_words
from stlm_kd.reporting.format import cell, noted_table, numbers, words


def adaptation_table(reports: Mapping[str, AdaptationReport], title: str) -> Table:
    """Scores before, after initialisation and after training, and the training cost."""
    kinds = " / ".join(dict.fromkeys(MEASURES[report.task] for report in reports.values()))
    headings = numbers(
        "old → new tokens", "init", "exact", "own vocabulary", "initialised", "trained", "trained parameters",
        "tokens seen", "seconds",
    )  # fmt: skip
    table = noted_table([f"{kinds} on the same held-out data"], *words("teacher"), *headings, title=title)
    for name, report in reports.items():
        table.add_row(
            cell(name),
            f"{report.old_vocabulary:,} → {report.new_vocabulary:,}",
            cell(report.init),
            f"{report.tokens_by_origin.get('exact', 0) / report.new_vocabulary:.1%}",
            f"{report.before:.4f}",
            f"{report.initialised:.4f}",
            f"{report.trained:.4f}{' (step 0)' if report.best_step == 0 else ''}",
            f"{report.trained_parameters:,}",
            f"{report.tokens_seen:,}",
            f"{report.seconds:,.0f}",
        )
    return table


def adaptation_lines(reports: Mapping[str, AdaptationReport]) -> list[str]:
    """Details that the table omits, one line for each teacher."""
    return [f"{name}: {_details(report)}" for name, report in reports.items()]


def _details(report: AdaptationReport) -> str:
    origins = ", ".join(f"{origin} {count:,}" for origin, count in report.tokens_by_origin.items())
    objective = " + ".join(f"{weight:g} {name}" for name, weight in report.objective.items())
    aligned = "" if report.aligned is None else f", {report.aligned:.1%} of the tokens in shared spans"
    trained = f"trained on {objective}{aligned}, " if objective else ""
    chosen = ""
    if report.init_losses:
        chosen = f" (init {init_words(report.init, report.init_losses, report.init_positions)})"
    rows = f"from {report.teacher}; new rows: {origins}{chosen}"
    return f"{rows}; " + (
        f"{trained}{report.steps:,} steps, {report.stopped}" if report.steps else "not trained"
    )
