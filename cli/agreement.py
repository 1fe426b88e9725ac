"""``stlm-kd agreement``: how alike students and their teacher classify the same examples."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.printing import print_json, print_table
from stlm_kd.cli.words import AsJson, TrustRemoteCode


class Precision(str, Enum):
    """In what the models compute."""

    fp32 = "fp32"
    bf16 = "bf16"


def agreement(
    teacher: Annotated[str, typer.Argument(metavar="TEACHER", help="A run, model folder or Hub id.")],
    students: Annotated[
        list[str], typer.Argument(metavar="STUDENT", help="Runs, model folders, Hub ids of classifiers.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled examples; without it, the validation examples of the models' runs."),
    ] = None,
    text: Annotated[
        str, typer.Option(metavar="A[,B]", help="The column of the text, or two of a pair.")
    ] = "sentence",
    label: Annotated[str, typer.Option(help="The column of the label.")] = "label",
    context: Annotated[int | None, typer.Option(min=4, help="Tokens of an example at most.")] = None,
    precision: Annotated[Precision, typer.Option(help="bf16 is faster on a GPU.")] = Precision.fp32,
    output: Annotated[
        Path | None, typer.Option(help="Write all of it here as JSON, with every example.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare students with a teacher: κ, divergences, errors that they share, calibration, flips."""
    from stlm_kd.run.agreement import agreement_table, agreements, flip_lines
    from stlm_kd.run.agreement import as_json as plain
    from stlm_kd.run.output import write_output

    found = agreements(
        teacher,
        students,
        data=[str(path) for path in data or ()],
        text=[column.strip() for column in text.split(",")],
        label=label,
        context=context,
        precision=precision.value,
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, plain(found))
    if as_json:
        print_json(plain(found))
        return
    print_table(agreement_table(found))
    for line in flip_lines(found):
        typer.echo(line)
