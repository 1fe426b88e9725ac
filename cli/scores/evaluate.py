"""``stlm-kd eval``: scores of one or several models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stlm_kd.cli.console import print_json, print_table
from stlm_kd.cli.options import AsJson, Limit, OutputDir, Resume, ResumeOption, TrustRemoteCode, file_to_write
from stlm_kd.errors import UsageError

if TYPE_CHECKING:
    from stlm_kd.recipe.yaml import Plain


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|RUN", help="Run folders (the first student of each), model folders, Hub ids."
    ),
]
Suites = Annotated[
    list[str],
    typer.Option(
        "--suite",
        metavar="NAME|{suite: NAME, …}",
        help="perplexity, lm-eval or stlm (five benchmarks of it); pseudo-perplexity or masked-loss for "
        "masked models; classification or regression; agreement (of classifiers) and interchange, beside "
        "teachers; glue, ner or squad, for which copies of the model are fine-tuned; with options: "
        "'{suite: lm-eval, tasks: [blimp]}'. May be repeated.",
    ),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(
        help="Held-out text, or labelled examples, for the suites that read some; without it, that of "
        "the run's recipe."
    ),
]
TextColumns = Annotated[
    str | None,
    typer.Option(
        metavar="A[,B]",
        help="Labelled examples: the column of the text, or two of a pair; by default those of the run.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Labelled examples: the column of the label; by default that of the run."),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="For agreement and interchange: what the models are compared with; by default the teachers "
        "of their runs. May be repeated.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", help="Tasks of lm-eval or glue, short for {tasks: [A, B]}."),
]
Seeds = Annotated[int | None, typer.Option(min=1, help="Fine-tunings of each task.")]
Fraction = Annotated[
    float | None, typer.Option(help="Fine-tuning: the share of the training examples, above 0.")
]
Preset = Annotated[str | None, typer.Option(metavar="study|few-shot", help="Fine-tuning: whose settings.")]
Output = Annotated[Path | None, typer.Option(callback=file_to_write, help="Write the scores here as JSON.")]


def evaluate(
    models: Models,
    suite: Suites,
    data: HeldOut = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    teacher: Teachers = None,
    tasks: Tasks = None,
    seeds: Seeds = None,
    fraction: Fraction = None,
    preset: Preset = None,
    limit: Limit = None,
    output: Output = None,
    output_dir: OutputDir = Path("runs"),
    resume: ResumeOption = Resume.auto,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Score models, with standard errors: bits per byte, masked tokens, lm-eval, labels, or fine-tuned."""
    from stlm_kd.recipe.suites import suites

    options: dict[str, Plain] = {}
    if tasks is not None:
        options["tasks"] = [*tasks.split(",")]
    given: dict[str, Plain] = {"limit": limit, "seeds": seeds, "fraction": fraction, "preset": preset}
    options |= {name: value for name, value in given.items() if value is not None}
    chosen = suites(suite, options=options)
    twice = sorted({model for model in models if models.count(model) > 1})
    if twice:
        raise UsageError(f"{', '.join(twice)}: given twice")
    from stlm_kd.pipeline.scoring.evaluate import evaluate as run
    from stlm_kd.reporting.tables.scores import score_table

    results = run(
        models,
        suites=chosen,
        data=[str(path) for path in data or ()],
        text=None if text is None else [column.strip() for column in text.split(",")],
        label=label,
        teachers=teacher or (),
        output=output,
        trust_remote_code=trust_remote_code,
        output_dir=output_dir,
        resume=resume is Resume.auto,
    )
    if as_json:
        print_json({model: [result.to_json() for result in scores] for model, scores in results.items()})
    else:
        print_table(score_table(results))
