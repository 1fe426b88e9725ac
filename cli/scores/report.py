"""``stlm-kd report``: an HTML report of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import say
from stlm_kd.cli.options import Baseline, SmallestDifferences, file_to_write


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders.")],
    html: Annotated[
        Path, typer.Option("--html", metavar="FILE", callback=file_to_write, help="The file to write.")
    ],
    baseline: Baseline = None,
    smallest: SmallestDifferences = None,
) -> None:
    """Write a self-contained HTML report of runs: settings, cost, curves, scores with intervals, verdicts.

    The file needs no network and no scripts.
    """
    import stlm_kd

    stlm_kd.report(runs, target=html, baseline=baseline, smallest=stlm_kd.Smallest.read(smallest or ()))
    say(f"Report: {html}")
