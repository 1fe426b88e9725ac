"""The command ``report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stlm_kd.artifacts.output import refuse_no_file, write_page
from stlm_kd.comparison.compare import DEFAULT_SMALLEST
from stlm_kd.comparison.smallest import Smallest
from stlm_kd.reporting.run_page.gather import gather
from stlm_kd.reporting.run_page.page import page


def report(
    runs: Sequence[str],
    *,
    target: Path,
    baseline: str | None = None,
    smallest: Smallest = DEFAULT_SMALLEST,
) -> None:
    """Write a self-contained HTML report on one run, or on several side by side.

    Args:
        runs: Run folders.
        target: The output file; parent folders are created.
        baseline: The row that the others are compared with; see ``compare``.
        smallest: The smallest difference that matters in each metric.

    Raises:
        MissingResourceError: The file cannot be written, or a run does not exist.
        UsageError: ``target`` is a folder; or see ``gather``.
        CheckpointError: See ``gather``.
    """
    refuse_no_file(target, "--html")
    write_page(target, page(gather(runs, baseline=baseline, smallest=smallest)))
