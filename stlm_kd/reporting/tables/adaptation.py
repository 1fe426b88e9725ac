"""A table of vocabulary adaptations."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from stlm_kd.artifacts.reports import MEASURES, AdaptationReport


def adaptation_table(reports: Mapping[str, AdaptationReport], title: str) -> Table:
    """Scores before, after initialisation and after training, and the training cost."""
    kinds = " / ".join(dict.fromkeys(MEASURES[report.task] for report in reports.values()))
    table = Table(
        title=Text(title, "table.title"),
        caption=f"{kinds} on the same held-out data",
        caption_justify="left",
    )
    table.add_column("teacher")
    for heading in (
        "old → new tokens", "init", "exact", "own vocabulary", "initialised", "trained", "trained parameters",
        "tokens seen", "seconds",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for name, report in reports.items():
        table.add_row(
            Text(name),
            f"{report.old_vocabulary:,} → {report.new_vocabulary:,}",
            Text(report.init),
            f"{report.tokens_by_origin.get('exact', 0) / report.new_vocabulary:.1%}",
            f"{report.before:.4f}",
            f"{report.initialised:.4f}",
            f"{report.trained:.4f}{' (step 0)' if report.best_step == 0 else ''}",
            f"{report.trained_parameters:,}",
            f"{report.tokens_seen:,}",
            f"{report.seconds:,.0f}",
        )
    return table
