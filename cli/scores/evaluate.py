"""``stlm-kd eval``: score one or several models."""

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
        metavar="MODEL|RUN", help="Run folders (first student of each), model folders or Hub ids."
    ),
]
Suites = Annotated[
    list[str],
    typer.Option(
        "--suite",
        metavar="NAME|{suite: NAME, …}",
        help="perplexity, lm-eval or stlm (five lm-eval benchmarks); pseudo-perplexity or masked-loss for "
        "masked models; classification or regression; agreement (classifiers) and interchange, which "
        "compare with teachers; glue, ner or squad, which fine-tune copies of the model; with options: "
        "'{suite: lm-eval, tasks: [blimp]}'. May be repeated.",
    ),
]
HeldOut = Annotated[
    list[Path] | None,
    typer.Option(
        help="Held-out text or labelled examples, for suites that read them. Default: those of the run's "
        "recipe."
    ),
]
TextColumns = Annotated[
    str | None,
    typer.Option(
        metavar="A[,B]",
        help="Labelled examples: text column, or two for text pairs. Default: those of the run.",
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Labelled examples: label column. Default: that of the run."),
]
Teachers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODEL",
        help="For agreement and interchange: teacher to compare with. Default: the teachers of the models' "
        "runs. May be repeated.",
    ),
]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="A,B,…", help="Tasks of lm-eval or glue, short for {tasks: [A, B]}."),
]
Seeds = Annotated[int | None, typer.Option(min=1, help="Fine-tuning: number of seeds per task.")]
Fraction = Annotated[
    float | None, typer.Option(help="Fine-tuning: fraction of the training examples, above 0.")
]
Preset = Annotated[
    str | None, typer.Option(metavar="study|few-shot", help="Fine-tuning: preset of settings.")
]
Output = Annotated[
    Path | None, typer.Option(callback=file_to_write, help="Write the scores to this JSON file.")
]


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
    """Score models with standard errors: language modelling, benchmarks, classification, fine-tuning."""
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
    import stlm_kd
    from stlm_kd.reporting.tables.scores import score_table

    results = stlm_kd.evaluate(
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
