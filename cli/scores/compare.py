"""``stlm-kd compare``: compare runs and scores with significance tests."""

from __future__ import annotations

from typing import Annotated

import typer

from stlm_kd.cli.console import print_comparison, print_json
from stlm_kd.cli.options import AsJson, Baseline, Output, SmallestDifferences


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
            help="Compare only this metric, such as accuracy. May be repeated. Default: all; the "
            "multiple-testing correction grows with the number of comparisons."
        ),
    ] = None,
    smallest: SmallestDifferences = None,
    allow_lossy: Annotated[
        bool,
        typer.Option(
            "--allow-lossy",
            help="Compare bits per byte even if a tokenizer loses part of the text (case, accents).",
        ),
    ] = False,
    output: Output = None,
    as_json: AsJson = False,
) -> None:
    """Compare students, controls and teachers: means over seeds, paired tests, and a verdict.

    Better or worse: a difference that matters, significant over seeds and examples after correction for all
    comparisons. Equivalent: significantly no such difference. A single seed gives no verdict.
    """
    import stlm_kd
    from stlm_kd.artifacts.output import write_output
    from stlm_kd.reporting.tables.comparison import as_json as plain

    comparison = stlm_kd.compare(
        sources,
        baseline=baseline,
        only=metric or (),
        smallest=stlm_kd.Smallest.read(smallest or ()),
        lossy="allow" if allow_lossy else "refuse",
    )
    if output is not None:
        write_output(output, plain(comparison))
    if as_json:
        print_json(plain(comparison))
    else:
        print_comparison(comparison)
