"""``stlm-kd interchange``: agreement of students with their teacher under hidden-state interventions."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Teacher, TrustRemoteCode, file_to_write
from stlm_kd.errors import UsageError


class Aligned(str, Enum):
    """Alignment of the exchanged layers."""

    full = "full"
    middle = "middle"
    late = "late"
    first = "first"
    last = "last"


class Positions(str, Enum):
    """Selection of the exchanged positions."""

    consecutive = "consecutive"
    random = "random"


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
    alignment: Annotated[Aligned, typer.Option(help="Which layers to exchange.")] = Aligned.full,
    source: Annotated[
        str,
        typer.Option(
            help="Source of the hidden states: other-example, in-context-random, mixup, input-tokens, or a "
            "registered one."
        ),
    ] = "other-example",
    positions: Annotated[
        Positions, typer.Option(help="Contiguous or random positions.")
    ] = Positions.consecutive,
    rows: Annotated[int, typer.Option(min=2, help="Maximum rows of text.")] = 256,
    context: Annotated[int | None, typer.Option(min=4, help="Tokens per row.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(callback=file_to_write, help="Write all results to this JSON file, with every row."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare students with a teacher after the same exchange of hidden states in both."""
    from stlm_kd.artifacts.output import write_output
    from stlm_kd.eval.interchange.config import PairConfig, held_out_sources
    from stlm_kd.pipeline.scoring.interchange import as_json as plain
    from stlm_kd.pipeline.scoring.interchange import interchange_scores, interchange_table

    if source not in held_out_sources():
        raise UsageError(f"--source: {source} found; expected one of {', '.join(held_out_sources())}")
    pairs = PairConfig(source, positions.value, rows, seed)
    found = interchange_scores(
        teacher,
        students,
        pairs,
        alignment=alignment.value,
        context=context,
        data=[str(path) for path in data or ()],
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, plain(teacher, pairs, alignment.value, found))
    if as_json:
        print_json(plain(teacher, pairs, alignment.value, found))
        return
    print_table(interchange_table(teacher, found))
