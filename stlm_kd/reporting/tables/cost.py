"""A table of the costs of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from stlm_kd.artifacts.reports import AdaptationReport, TrainingReport
from stlm_kd.reporting.format import UNKNOWN, cell, count, flops, noted_table, numbers, words
from stlm_kd.reporting.run_page.facts import Trained

FLOPS_NOTE = (
    "FLOPs: matrix products of all forward and backward passes, including those of teachers, computed and "
    "not measured; without validation, evaluation and teacher training. Seconds: the training loop."
)


def cost_table(trained: Sequence[Trained], adaptations: Mapping[str, AdaptationReport]) -> Table:
    """One row for each training of a student or teacher, then one for each adaptation."""
    headings = numbers("seed", "steps", "tokens seen", "seconds", "FLOPs", "checkpoint", "held-out loss")
    table = noted_table([FLOPS_NOTE], *words("training"), *headings, *words("ended"))
    for one in trained:
        report = one.report
        kept = "last" if report.best_step is None else f"step {report.best_step:,}"
        best = UNKNOWN if report.best_loss is None else f"{report.best_loss:.4f}"
        seed = UNKNOWN if one.seed is None else str(one.seed)
        table.add_row(cell(one.name), seed, *_spent(report), kept, best, cell(report.stopped))
    for name, adapted in adaptations.items():
        row = (UNKNOWN, *_spent(adapted), "best", UNKNOWN)
        table.add_row(cell(f"teacher {name}, adapted"), *row, cell(adapted.stopped))
    return table


def _spent(report: TrainingReport | AdaptationReport) -> tuple[str, str, str, str]:
    return count(report.steps), count(report.tokens_seen), f"{report.seconds:,.1f}", flops(report.flops)
