"""``stlm-kd agreement``: agreement of students with their teacher on labelled examples, explanations."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Teacher, TrustRemoteCode, file_to_write
from stlm_kd.errors import UsageError


class Precision(str, Enum):
    """Precision of the models."""

    fp32 = "fp32"
    bf16 = "bf16"


class Which(str, Enum):
    """Selection of explained examples."""

    random = "random"
    easy = "easy"
    hard = "hard"
    easy_and_hard = "easy-and-hard"


Students = Annotated[
    list[str], typer.Argument(metavar="STUDENT", help="Runs, model folders or Hub ids of classifiers.")
]
LabelledData = Annotated[
    list[Path] | None,
    typer.Option(help="Labelled examples. Default: the validation examples of the models' runs."),
]
TextColumns = Annotated[str, typer.Option(metavar="A[,B]", help="Text column, or two for text pairs.")]
LabelColumn = Annotated[str, typer.Option(help="Label column.")]
Context = Annotated[int | None, typer.Option(min=4, help="Maximum tokens per example.")]
PrecisionOption = Annotated[Precision, typer.Option(help="bf16 is faster on a GPU.")]
Attributions = Annotated[
    str | None,
    typer.Option(
        metavar="A[,B]",
        help="lime, integrated-gradients: word attributions of predictions, and their agreement.",
    ),
]
NumExamples = Annotated[int, typer.Option(min=2, help="Maximum explained examples.")]
WhichOption = Annotated[
    Which,
    typer.Option(
        help="Which examples to explain: random, easiest or hardest for the teacher, or both of each class."
    ),
]
OnlyIds = Annotated[
    str | None,
    typer.Option(metavar="ID,…", help="Only examples with these ids."),
]
OnlyClasses = Annotated[
    str | None,
    typer.Option(metavar="A,…", help="Only examples of these classes."),
]
OnlySources = Annotated[
    str | None,
    typer.Option(
        metavar="A,…",
        help="Only examples whose column source is one of these (CoLA, out of domain: "
        "clc95,c-05,j_71,s_97,swb04,w_80).",
    ),
]
NumFeatures = Annotated[
    int | None,
    typer.Option(min=1, help="LIME: maximum words with a weight (default: all)."),
]
NumSamples = Annotated[int, typer.Option(min=2, help="LIME: number of distinct perturbed texts.")]
IntegralSteps = Annotated[
    int,
    typer.Option(min=1, help="Integrated gradients: integration steps."),
]
TopWords = Annotated[int, typer.Option(min=1, help="Number of top words to compare.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed of examples and perturbations.")]
Page = Annotated[
    Path | None,
    typer.Option(
        callback=file_to_write,
        help="Write the explained texts to this HTML page, with words coloured by weight for each model.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(callback=file_to_write, help="Write all results to this JSON file, with every example."),
]


def agreement(
    teacher: Teacher,
    students: Students,
    data: LabelledData = None,
    text: TextColumns = "sentence",
    label: LabelColumn = "label",
    context: Context = None,
    precision: PrecisionOption = Precision.fp32,
    attributions: Attributions = None,
    examples: NumExamples = 100,
    which: WhichOption = Which.random,
    ids: OnlyIds = None,
    classes: OnlyClasses = None,
    sources: OnlySources = None,
    features: NumFeatures = None,
    samples: NumSamples = 500,
    steps: IntegralSteps = 50,
    top: TopWords = 3,
    seed: Seed = 0,
    html: Page = None,
    output: Output = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare students with a teacher: κ, divergences, shared errors, calibration, flips, explanations."""
    from stlm_kd.artifacts.output import write_output, write_page
    from stlm_kd.eval.attribution.explain import AttributionConfig, ReadConfig
    from stlm_kd.eval.attribution.select import Choice
    from stlm_kd.pipeline.scoring.agreement import agreements, methods_of
    from stlm_kd.reporting.attribution_page import attribution_page
    from stlm_kd.reporting.tables.agreement import agreement_table, flip_lines
    from stlm_kd.reporting.tables.agreement import as_json as plain

    methods = methods_of(_words(attributions))
    if html is not None and not methods:
        raise UsageError("--html shows explanations; choose a method: --attributions lime")
    choice = Choice(examples, _words(ids), which.value, _words(classes), _words(sources), seed)
    found = agreements(
        teacher,
        students,
        data=[str(path) for path in data or ()],
        text=_words(text),
        label=label,
        reading=ReadConfig(context, precision=precision.value),
        explaining=AttributionConfig(methods, choice, features, samples, steps),
        top=top,
        trust_remote_code=trust_remote_code,
    )
    if output is not None:
        write_output(output, plain(found))
    if html is not None:
        write_page(html, attribution_page(found.answers, found.found, found.texts))
    if as_json:
        print_json(plain(found))
        return
    print_table(agreement_table(found))
    for line in flip_lines(found):
        typer.echo(line)
    if html is not None:
        typer.echo(f"explanations: {html}")


def _words(given: str | None) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return () if given is None else tuple(word.strip() for word in given.split(","))
