"""The command ``adapt-teacher``: adapt teachers to the student's vocabulary and score the change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import StringIO
from os import PathLike, fspath
from pathlib import Path

from rich.console import Console

from stlm_kd.artifacts.atomic import write_json, write_text
from stlm_kd.artifacts.output import width_of
from stlm_kd.artifacts.reports import read_adaptation
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.artifacts.stage_store import copy_folder
from stlm_kd.comparison.compare import Comparison, compare_pairs
from stlm_kd.comparison.entries import scored_model
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.distributed import launched_processes, on_main_process
from stlm_kd.errors import UsageError, did_you_mean
from stlm_kd.models.load import declared_task, load_config
from stlm_kd.pipeline.checks.rehearsal import rehearse
from stlm_kd.pipeline.checks.validate import check_recipe
from stlm_kd.pipeline.context import RecipeSetup, RunContext, context_for
from stlm_kd.pipeline.locks import lock_of, write_lock
from stlm_kd.pipeline.recording import keep_pins, recorded_once
from stlm_kd.pipeline.run import Run
from stlm_kd.pipeline.stages.score import fine_tune, kept_scores
from stlm_kd.pipeline.stages.teacher import PreparedTeacher, copy_reports, finished_teacher, prepare_teacher
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe, from_values, named_recipe
from stlm_kd.recipe.lock import Lock
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.recipe.yaml import Plain
from stlm_kd.reporting.tables.adaptation import adaptation_table
from stlm_kd.reporting.tables.comparison import as_json as comparison_as_json
from stlm_kd.reporting.tables.comparison import differences_table
from stlm_kd.reporting.tables.scores import score_table
from stlm_kd.sharing.pins import current


def adapt_teacher(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    teacher: str | None = None,
    name: str | None = None,
    output_dir: str | PathLike[str] = "runs",
    resume: bool = True,
    update: bool = False,
    rehearsal: bool = True,
    trust_remote_code: bool = False,
    command: str = "",
) -> Run:
    """Adapt one teacher of a recipe, or all that it adapts, to the student's vocabulary, and write a report.

    The run's folder gets the adapted models under ``teachers/``, ``results.json``, ``table.txt`` and
    ``recipe.lock``.

    Args:
        recipe: A recipe, a file, or a built-in name.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        teacher: A teacher's name, or None for all.
        name: The recipe's name, with which the run's name starts; default: the recipe's.
        output_dir: Contains all runs and their shared stages.
        resume: Whether to resume unfinished work.
        update: Whether to follow names on the Hub that have moved since the run's last start.
        rehearsal: Whether to save, load and score each model once before training.
        trust_remote_code: Whether to run code shipped with a model.
        command: The command line, for the record.

    Raises:
        UsageError: The recipe does not adapt this teacher, or any.
        StlmKdError: As ``distill``.
    """
    recipe, name = named_recipe(recipe, overrides, name)
    output_dir = Path(output_dir)
    names = [one.name for one in recipe.teachers if one.adapt is not None]
    if not names:
        raise UsageError(f"{name}: none of its teachers has adapt; add for instance adapt: {{tokens: 20M}}")
    if teacher is not None and teacher not in names:
        raise UsageError(f"{teacher}: not a teacher that {name} adapts{did_you_mean(teacher, names)}")
    with recorded_once(
        recipe, name=_run_name(recipe, name, teacher), output_dir=output_dir, command=command, update=update
    ) as run:
        context = context_for(
            recipe, output_dir, resume=resume, trust_remote_code=trust_remote_code, run_name=run.name
        )
        setup = setup_of(recipe, context)
        chosen = [one for one in recipe.teachers if one.adapt is not None and teacher in (None, one.name)]
        begun = on_main_process(lambda: _check(setup, chosen, run, origin=name, rehearsal=rehearsal))
        adapted = [prepare_teacher(setup, one) for one in chosen]
        if launched_processes() > 1:  # fine-tuning is training, so all processes take part
            for model in dict.fromkeys(m for one in adapted for m in (one.original, one.model)):
                fine_tune(recipe, model, context)

        def finish() -> None:
            _write_results(recipe, adapted, run, context)
            write_lock(recipe, run, adapted, context, begun=begun)

        on_main_process(finish)
    return Run(run)


def adaptation_recipe(
    model: str,
    overrides: Sequence[str] = (),
    *,
    tokenizer: str | PathLike[str] | None,
    train: Sequence[str | PathLike[str]],
    validation: Sequence[str | PathLike[str]],
    trust_remote_code: bool = False,
) -> Recipe:
    """The recipe that adapts one model; pass it to ``adapt_teacher``.

    >>> words = {"tokenizer": "my-tokenizer", "train": ["a.txt"], "validation": ["b.txt"]}
    >>> recipe = adaptation_recipe("some/gpt", ["teachers[0].adapt.tokens=2M", "task=clm"], **words)
    >>> recipe.teachers[0].name, recipe.teachers[0].adapt.tokens
    ('gpt', 2000000)

    Args:
        model: The teacher: a model folder or Hub id.
        overrides: Changes ``key.path=value``.
        tokenizer: The tokenizer with the new vocabulary: a folder or Hub id.
        train: Files or folders of training text.
        validation: Held-out text, for early stopping and the report.
        trust_remote_code: Whether to run code shipped with the model.

    Raises:
        UsageError: There is no tokenizer or no text.
        RecipeError: An override is invalid.
        ModelError, MissingResourceError: The model's configuration, from which the task is read unless an
            override names it, cannot be loaded.
    """
    required = {"--tokenizer": tokenizer, "--data": train, "--validation": validation}
    if missing := [option for option, value in required.items() if not value]:
        raise UsageError(f"{', '.join(missing)}: not given; or name a recipe by -r")
    name = file_name(Path(model).name).lstrip("_") or "teacher"
    values: dict[str, Plain] = {
        "student": {"tokenizer": fspath(tokenizer or "")},
        "teachers": [{"name": name, "model": model, "adapt": {}}],
        "data": {
            "train": [fspath(path) for path in train],
            "validation": [fspath(path) for path in validation],
        },
    }
    recipe = from_values({"task": "clm", **values}, overrides, origin="the options")
    if any(override.startswith("task=") for override in overrides):
        return recipe
    task = on_main_process(lambda: declared_task(load_config(model, trust_remote_code=trust_remote_code)))
    return from_values({"task": task, **values}, overrides, origin="the options")


def _run_name(recipe: Recipe, name: str, teacher: str | None) -> str:
    """A run name distinct from the recipe's distillation run and from its other teachers' adaptations.

    Folder names have at most 64 characters, so the recipe's name is truncated.
    """
    if teacher is not None:
        return f"{file_name(name)[:24]}-adapt-{teacher}"
    return name if recipe.adapts_only else f"{file_name(name)[:58]}-adapt"


def _check(
    setup: RecipeSetup, teachers: Sequence[Teacher], run: Path, *, origin: str, rehearsal: bool
) -> Lock:
    """Validate the recipe and find what its names mean; rehearse unless all teachers are finished."""

    def is_finished() -> bool:
        return all(finished_teacher(setup, one) for one in teachers)

    check_recipe(setup, origin=origin, is_finished=is_finished)
    begun = lock_of(setup.recipe)
    keep_pins(run)
    if rehearsal and not is_finished():
        rehearse(setup, folder=run, origin=origin, only=[one.name for one in teachers])
    return begun


def _write_results(
    recipe: Recipe, adapted: Sequence[PreparedTeacher], run: Path, context: RunContext
) -> None:
    for teacher in adapted:
        copy_folder(Path(teacher.model), run / "teachers" / teacher.name)
    copy_reports(adapted, run)
    reports = {t.name: read_adaptation(t.adaptation) for t in adapted if t.adaptation is not None}
    scores = _scores(recipe, adapted, context)
    cost = _cost(scores, [teacher.name for teacher in adapted])
    values = {
        "adaptations": {name: asdict(report) for name, report in reports.items()},
        "suites": {name: [result.to_json() for result in found] for name, found in scores.items()},
        "differences": comparison_as_json(cost)["comparisons"],
        "notes": list(cost.notes),
        "pins": [asdict(one) for one in current().records()],
        "models": {teacher.name: str(run / "teachers" / teacher.name) for teacher in adapted},
    }
    write_json(run / "results.json", values)
    tables = [adaptation_table(reports, title=run.name)]
    if scores:
        tables += [score_table(scores), differences_table(cost)]
    text = StringIO()
    for table in tables:
        Console(file=text, width=width_of(table)).print(table)
    write_text(run / "table.txt", text.getvalue())


def _cost(scores: Mapping[str, Sequence[SuiteResult]], names: Sequence[str]) -> Comparison:
    """The cost of adaptation: each adapted teacher minus its original, on the same examples."""
    rows = {name: scored_model(name, [found], kind="teacher") for name, found in scores.items()}
    table = ResultsTable(rows.values())
    pairs = [
        (rows[f"{name}, adapted"], rows[name], metric)
        for name in names
        for metric in table.metrics
        if name in rows and table.complete_values(rows[name], metric)
    ]
    return Comparison(table, tuple(table.metrics), "as it was", *compare_pairs(table, pairs))


def _scores(
    recipe: Recipe, adapted: Sequence[PreparedTeacher], context: RunContext
) -> dict[str, list[SuiteResult]]:
    if not recipe.eval:
        return {}
    found = {}
    for teacher in adapted:
        found[teacher.name] = kept_scores(recipe, teacher.original, context)
        found[f"{teacher.name}, adapted"] = kept_scores(recipe, teacher.model, context)
    return found
