"""``stlm-kd interchange``: whether students answer interventions on hidden states as their teacher does."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Teacher, TrustRemoteCode, file_to_write


class Aligned(str, Enum):
    """Which layers are exchanged."""

    full = "full"
    middle = "middle"
    late = "late"
    first = "first"
    last = "last"


class Origin(str, Enum):
    """Where the other states come from."""

    other_example = "other-example"
    in_context_random = "in-context-random"
    mixup = "mixup"
    input_tokens = "input-tokens"


class Positions(str, Enum):
    """At which positions of a text."""

    consecutive = "consecutive"
    random = "random"


def interchange(
    teacher: Teacher,
    students: Annotated[
        list[str], typer.Argument(metavar="STUDENT", help="Runs, model folders, Hub ids of language models.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Held-out text; without it, the validation text of the models' runs."),
    ] = None,
    alignment: Annotated[Aligned, typer.Option(help="Which layers are exchanged.")] = Aligned.full,
    source: Annotated[Origin, typer.Option(help="Where the other states come from.")] = Origin.other_example,
    positions: Annotated[
        Positions, typer.Option(help="A run of neighbours, or any.")
    ] = Positions.consecutive,
    rows: Annotated[int, typer.Option(min=2, help="Rows of the text, at most.")] = 256,
    context: Annotated[int | None, typer.Option(min=4, help="Tokens of a row.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(callback=file_to_write, help="Write all of it here as JSON, with every row."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare students with a teacher after the same exchange of hidden states in both."""
    from stlm_kd.artifacts.output import write_output
    from stlm_kd.eval.interchange.config import PairConfig
    from stlm_kd.pipeline.scoring.interchange import Question, interchange_scores, interchange_table
    from stlm_kd.pipeline.scoring.interchange import as_json as plain

    asked = PairConfig(source.value, positions.value, rows, seed)
    question = Question(alignment.value, asked, context)
    found = interchange_scores(
        teacher,
        students,
        question,
        data=[str(path) for path in data or ()],
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, plain(teacher, question, found))
    if as_json:
        print_json(plain(teacher, question, found))
        return
    print_table(interchange_table(teacher, found))
