"""``stlm-kd compare``: runs and scores side by side, and which differences are more than noise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Baseline, SmallestDifferences, file_to_write


def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|SCORES", help="Run folders, or JSON files written by stlm-kd eval --output."
        ),
    ],
    baseline: Baseline = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Compare this metric alone, as accuracy; may be repeated. By default all; every "
            "comparison makes the correction for many comparisons stronger."
        ),
    ] = None,
    smallest: SmallestDifferences = None,
    allow_lossy: Annotated[
        bool,
        typer.Option(
            "--allow-lossy",
            help="Compare bits per byte also where a tokenizer loses a part of the text (case, accents).",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(callback=file_to_write, help="Write the comparison here as JSON.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare students, controls and teachers: means over seeds, paired tests, and a verdict.

    Better or worse: seeds and examples, corrected for all comparisons, show a difference that matters.
    Equivalent: they show that none does. Of trainings with one seed there is no verdict.
    """
    from stlm_kd.artifacts.output import write_output
    from stlm_kd.comparison.compare import compare as run
    from stlm_kd.comparison.smallest import read_smallest
    from stlm_kd.reporting.tables.comparison import as_json as plain
    from stlm_kd.reporting.tables.comparison import differences_table, means_table

    comparison = run(
        sources,
        baseline=baseline,
        only=metric or (),
        smallest=read_smallest(smallest or ()),
        lossy="allow" if allow_lossy else "refuse",
    )
    if output is not None:
        write_output(output, plain(comparison))
    if as_json:
        print_json(plain(comparison))
    else:
        print_table(means_table(comparison))
        print_table(differences_table(comparison))
