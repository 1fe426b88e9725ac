"""``stlm-kd interchange``: agreement of students with their teacher under hidden-state interventions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Settings, Teacher, TrustRemoteCode, file_to_write, read_settings


def interchange(
    teacher: Teacher,
    students: Annotated[
        list[str],
        typer.Argument(metavar="STUDENT", help="Runs, model folders or Hub ids of language models."),
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text. Default: the validation text of the models' runs."),
    ] = None,
    settings: Settings = None,
    output: Annotated[
        Path | None,
        typer.Option(callback=file_to_write, help="Write all results to this JSON file, with every row."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
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
        options=read_settings(settings),
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, found.to_json())
    if as_json:
        print_json(found.to_json())
    else:
        print_table(interchange_table(found))
