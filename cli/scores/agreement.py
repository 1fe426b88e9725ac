"""``stlm-kd agreement``: agreement of students with their teacher on labelled examples, explanations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import deliver, print_table, say
from stlm_kd.errors import UsageError


def agreement(
    teacher: options.Teacher,
    students: Annotated[
        list[str], typer.Argument(metavar="STUDENT", help="Runs, model folders or Hub ids of classifiers.")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Labelled examples. Default: the validation examples of the models' runs."),
    ] = None,
    text: Annotated[
        str, typer.Option(metavar="A[,B]", help="Text column, or two for text pairs.")
    ] = "sentence",
    label: Annotated[str, typer.Option(help="Label column.")] = "label",
    attributions: Annotated[
        str | None,
        typer.Option(
            metavar="A[,B]",
            help="lime, integrated-gradients: word attributions of predictions, and their agreement.",
        ),
    ] = None,
    settings: options.Settings = None,
    html: Annotated[
        Path | None,
        typer.Option(
            callback=options.file_to_write,
            help="Write the explained texts to this HTML page, with words coloured by weight for each model.",
        ),
    ] = None,
    output: options.Output = None,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare students with a teacher: κ, divergences, shared errors, calibration, flips, explanations.

    Options (--set) of the suite: examples, which (random, easy, hard, easy-and-hard), ids, classes, sources
    and seed select explained examples; features and samples are LIME's, steps those of integrated gradients;
    top is the number of words compared; context, batch_size and precision are those of the models.
    """
    import stlm_kd
    from stlm_kd.artifacts.output import write_page
    from stlm_kd.reporting.attribution_page import attribution_page
    from stlm_kd.reporting.tables.agreement import agreement_table, flip_lines
    from stlm_kd.reporting.tables.agreement import as_json as plain

    methods = None if attributions is None else f"[{attributions}]"
    chosen = options.read_settings(settings, attributions=methods)
    if html is not None and not chosen.get("attributions"):
        raise UsageError("--html shows explanations; choose a method: --attributions lime")
    found = stlm_kd.agreement(
        teacher,
        students,
        data=data or (),
        text=options.split(text),
        label=label,
        options=chosen,
        trust_remote_code=trust_remote_code,
    )
    printed = deliver(plain(found), output=output, as_json=as_json)
    if html is not None:
        write_page(html, attribution_page(found.answers, found.found, found.texts))
    if printed:
        return
    print_table(agreement_table(found))
    for line in flip_lines(found):
        say(line)
    if html is not None:
        say(f"explanations: {html}")
