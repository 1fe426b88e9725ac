"""``stlm-kd eval``: score one or several models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stlm_kd.cli import options
from stlm_kd.cli.console import deliver, print_table

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
    str | None, typer.Option(help="Labelled examples: label column. Default: that of the run.")
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
    str | None, typer.Option(metavar="A,B,…", help="Tasks of lm-eval or glue, short for {tasks: [A, B]}.")
]


def evaluate(
    models: Models,
    suite: Suites,
    data: HeldOut = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    teacher: Teachers = None,
    tasks: Tasks = None,
    limit: options.Limit = None,
    settings: options.Settings = None,
    output: options.Output = None,
    output_dir: options.OutputDir = Path("runs"),
    resume: options.ResumeOption = options.Resume.auto,
    verify: options.Verify = False,
    trust_remote_code: options.TrustRemoteCode = False,
    as_json: options.AsJson = False,
) -> None:
    """Score models with standard errors: language modelling, benchmarks, classification, fine-tuning.

    Options (--set) apply to the suites that have them, such as seeds=5, fraction=.1 or preset=few-shot.
    """
    import stlm_kd
    from stlm_kd.reporting.tables.scores import score_table

    listed = None if tasks is None else f"[{tasks}]"
    results = stlm_kd.evaluate(
        models,
        suites=suite,
        options=options.read_settings(settings, tasks=listed, limit=limit),
        data=data or (),
        text=options.split(text) or None,
        label=label,
        teachers=teacher or (),
        trust_remote_code=trust_remote_code,
        output_dir=output_dir,
        resume=resume is options.Resume.auto,
    )
    plain = {model: [result.to_json() for result in scores] for model, scores in results.items()}
    if not deliver(plain, output=output, as_json=as_json):
        print_table(score_table(results))
