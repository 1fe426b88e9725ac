"""``stlm-kd interchange``: agreement of students with their teacher under hidden-state interventions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import print_json, print_table


def interchange(
    teacher: options.Teacher,
    students: Annotated[
        list[str],
        typer.Argument(metavar="STUDENT", help="Runs, model folders or Hub ids of language models."),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text. Default: the validation text of the models' runs."),
    ] = None,
    settings: options.Settings = None,
    output: options.Output = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare students with a teacher after the same exchange of hidden states in both.

    Options (--set) of the suite: alignment (full, middle, late, first, last), source (other-example, mixup,
    …), positions (consecutive, random), rows, context, seed.
    """
    import stlm_kd
    from stlm_kd.artifacts.output import write_output
    from stlm_kd.reporting.tables.interchange import interchange_table

    found = stlm_kd.interchange(
        teacher,
        students,
        data=data or (),
        options=options.read_settings(settings),
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, found.to_json())
    if as_json:
        print_json(found.to_json())
    else:
        print_table(interchange_table(found))
