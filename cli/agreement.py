"""``stlm-kd agreement``: how alike students and their teacher classify the same examples, and why."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.printing import print_json, print_table
from stlm_kd.cli.words import AsJson, TrustRemoteCode
from stlm_kd.errors import UsageError


class Precision(str, Enum):
    """In what the models compute."""

    fp32 = "fp32"
    bf16 = "bf16"


class Which(str, Enum):
    """Which examples are explained."""

    random = "random"
    easy = "easy"
    hard = "hard"
    easy_and_hard = "easy-and-hard"


_EXPLAINED = "Explanations"


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
    attributions: Annotated[
        str | None,
        typer.Option(
            metavar="A[,B]",
            help="lime, integrated-gradients: explain decisions by words, and compare the explanations.",
            rich_help_panel=_EXPLAINED,
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=2, help="So many at most are explained.", rich_help_panel=_EXPLAINED)
    ] = 100,
    which: Annotated[
        Which,
        typer.Option(
            help="Drawn at random; those that are easiest or hardest for the teacher; or of each class some "
            "of both.",
            rich_help_panel=_EXPLAINED,
        ),
    ] = Which.random,
    ids: Annotated[
        str | None,
        typer.Option(metavar="ID,…", help="These examples and no others.", rich_help_panel=_EXPLAINED),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,…", help="Only examples of these classes.", rich_help_panel=_EXPLAINED),
    ] = None,
    sources: Annotated[
        str | None,
        typer.Option(
            metavar="A,…",
            help="Only examples whose column source is one of these (CoLA, out of domain: "
            "clc95,c-05,j_71,s_97,swb04,w_80).",
            rich_help_panel=_EXPLAINED,
        ),
    ] = None,
    features: Annotated[
        int | None,
        typer.Option(
            min=1, help="LIME: so many words at most get a weight (default: all).", rich_help_panel=_EXPLAINED
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=2, help="LIME: perturbed texts, all different.", rich_help_panel=_EXPLAINED)
    ] = 500,
    steps: Annotated[
        int,
        typer.Option(min=1, help="Integrated gradients: points of the integral.", rich_help_panel=_EXPLAINED),
    ] = 50,
    top: Annotated[
        int, typer.Option(min=1, help="Compare so many of the heaviest words.", rich_help_panel=_EXPLAINED)
    ] = 3,
    seed: Annotated[
        int, typer.Option(min=0, help="Of drawn examples and perturbations.", rich_help_panel=_EXPLAINED)
    ] = 0,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write a page here: the explained texts with words coloured by weight, all models side by "
            "side.",
            rich_help_panel=_EXPLAINED,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write all of it here as JSON, with every example.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare students with a teacher: κ, divergences, shared errors, calibration, flips, explanations."""
    from stlm_kd.eval.choosing import Choice
    from stlm_kd.eval.explaining import Explaining, Reading
    from stlm_kd.run.agreement import agreements, methods_of, page_of
    from stlm_kd.run.agreement import as_json as plain
    from stlm_kd.run.agreement_table import agreement_table, flip_lines
    from stlm_kd.run.output import write_output, write_page

    methods = methods_of(_words(attributions))
    if html is not None and not methods:
        raise UsageError("--html shows explanations; say which: --attributions lime")
    choice = Choice(examples, _words(ids), which.value, _words(classes), _words(sources), seed)
    found = agreements(
        teacher,
        students,
        data=[str(path) for path in data or ()],
        text=_words(text),
        label=label,
        reading=Reading(context, precision=precision.value),
        explaining=Explaining(methods, choice, features, samples, steps),
        top=top,
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, plain(found))
    if html is not None:
        write_page(html, page_of(found))
    if as_json:
        print_json(plain(found))
        return
    print_table(agreement_table(found))
    for line in flip_lines(found):
        typer.echo(line)
    if html is not None:
        typer.echo(f"explanations: {html}")


def _words(given: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return () if given is None else tuple(word.strip() for word in given.split(","))
