"""The command ``report``: collects the data of runs, and renders it as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from os import PathLike, fspath
from pathlib import Path

from stlm_kd.artifacts.output import refuse_no_file, write_page
from stlm_kd.artifacts.record import Pinned
from stlm_kd.comparison.compare import DEFAULT_SMALLEST
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.recipe.describe import describe
from stlm_kd.reporting.figures import Drawing, interval_drawing, panel_drawing
from stlm_kd.reporting.model_card import is_synthetic
from stlm_kd.reporting.run_page.facts import Panel, ReportFacts, RunFacts
from stlm_kd.reporting.run_page.gather import gather
from stlm_kd.reporting.tables.adaptation import adaptation_lines, adaptation_table
from stlm_kd.reporting.tables.comparison import differences_table, means_table
from stlm_kd.reporting.tables.cost import cost_table
from stlm_kd.reporting.tables.results import result_table
from stlm_kd.reporting.tables.scores import score_table
from stlm_kd.reporting.templating import render


def report(
    runs: Sequence[str | PathLike[str]],
    *,
    target: str | PathLike[str],
    baseline: str | None = None,
    smallest: Smallest = DEFAULT_SMALLEST,
) -> None:
    """Write a self-contained HTML report on one run, or on several side by side.

    Args:
        runs: Runs, or their folders.
        target: The output file; parent folders are created.
        baseline: The row that the others are compared with; see ``compare``.
        smallest: The smallest difference that matters in each metric.

    Raises:
        MissingResourceError: The file cannot be written, or a run does not exist.
        UsageError: ``target`` is a folder; or see ``gather``.
        CheckpointError: See ``gather``.
    """
    refuse_no_file(Path(target), "--html")
    write_page(
        Path(target), page(gather([fspath(run) for run in runs], baseline=baseline, smallest=smallest))
    )


def page(found: ReportFacts) -> str:
    """Render the whole document; its template says what stands where."""
    return render(
        "run_page.html.j2",
        title=f"stlm-kd: {', '.join(run.details.record.name for run in found.runs)}",
        found=found,
        overview=_overview,
        describe=describe,
        is_synthetic=is_synthetic,
        interval_drawing=interval_drawing,
        result_table=result_table,
        adaptation_table=adaptation_table,
        adaptation_lines=adaptation_lines,
        score_table=score_table,
        cost_table=cost_table,
        means_table=means_table,
        differences_table=differences_table,
        curves_of=_curves,
    )


def _overview(run: RunFacts) -> list[tuple[str, str]]:
    """Names and values; empty values are not shown."""
    record = run.details.record
    versions = [f"{name} {version}" for name, version in record.versions.items()]
    return [
        ("folder", str(run.details.path)),
        ("command", record.command),
        ("status", f"{record.status}: {record.message}" if record.message else record.status),
        ("started", record.started),
        ("ended", record.finished or ""),
        ("hardware", ", ".join(part for part in (record.hardware, record.platform) if part)),
        ("software", ", ".join([f"python {record.python}", *versions])),
        ("recipe hash", record.recipe_hash),
        ("used from the Hub", "; ".join(map(_used, record.pins))),
    ]


def _used(one: Pinned) -> str:
    return f"{one.id} ({one.asked or 'main'}) at {one.commit}, licence {one.licence or 'unknown'}"


def _curves(panels: Sequence[Panel]) -> list[tuple[str, list[Drawing]]]:
    """The panels of each group; a training has the same colour in all of them."""
    order = list(
        dict.fromkeys(line.label for panel in panels if not panel.is_measured for line in panel.lines)
    )
    return [
        (group, [panel_drawing(panel, order) for panel in members])
        for group, members in groupby(panels, key=lambda panel: panel.group)
    ]
