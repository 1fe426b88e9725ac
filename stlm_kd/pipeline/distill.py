"""Everything that a recipe says: teachers, adaptation, students and controls, evaluation, one table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json, write_text
from stlm_kd.artifacts.output import width_of
from stlm_kd.artifacts.reports import read_adaptation, read_report
from stlm_kd.artifacts.results import Row, SuiteResult, Variant
from stlm_kd.artifacts.stage_store import STAGE, copy_folder
from stlm_kd.distributed import launched_processes, on_main_process
from stlm_kd.errors import CheckpointError, UsageError
from stlm_kd.models.load import count_parameters
from stlm_kd.pipeline.builders.models import empty_model
from stlm_kd.pipeline.builders.text import tokens_by_domain
from stlm_kd.pipeline.checks.overlap import recipe_notes
from stlm_kd.pipeline.checks.rehearsal import rehearse
from stlm_kd.pipeline.checks.validate import check_recipe
from stlm_kd.pipeline.context import RunContext, context_for
from stlm_kd.pipeline.identity import student_key
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.recording import recorded_once
from stlm_kd.pipeline.stages.score import fine_tune, kept_scores, write_reports
from stlm_kd.pipeline.stages.student import train_student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.teacher import (
    PreparedTeacher,
    cached_teacher,
    copy_reports,
    finished_teachers,
    prepare_teacher,
)
from stlm_kd.pipeline.stages.teacher_set import TeacherSet, remember_teachers
from stlm_kd.pipeline.stages.tokenizer import student_tokenizer
from stlm_kd.pipeline.summary import comparisons, selection_remark, text_remark, weak_teachers
from stlm_kd.recipe import Recipe, from_values, plain
from stlm_kd.recipe.schema.cache import asking
from stlm_kd.reporting.explanations import write_explanations
from stlm_kd.reporting.figure import draw_curves
from stlm_kd.reporting.model_card import CardFacts, family_of, write_card
from stlm_kd.reporting.tables.results import as_json, result_table
from stlm_kd.tracking.metrics import UNITS

Values = dict[str, Any]
"""A recipe as plain values, in which form it travels between processes."""


def distill(
    recipe: Recipe,
    *,
    name: str,
    output_dir: Path,
    resume: Literal["auto", "never"],
    trust_remote_code: bool,
    command: str,
    jobs: int = 1,
    rehearsal: bool = True,
) -> Path:
    """Do what the recipe says; ``results.json``, ``table.txt`` and ``curves.png`` tell what came of it.

    Args:
        recipe: A checked recipe.
        name: The run's name.
        output_dir: Holds all runs and what they share.
        resume: Whether unfinished work goes on where it stopped.
        trust_remote_code: Whether models may run code that they bring.
        command: As typed, for the record.
        jobs: Trainings and evaluations side by side.
        rehearsal: Whether models are saved, loaded and scored once before anything is trained.

    Returns:
        The run folder.
    """
    if jobs > 1 and launched_processes() > 1:
        raise UsageError(
            f"--jobs {jobs} with {launched_processes()} processes: trainings run either side by side or in "
            "several processes each; leave one of them out"
        )
    with recorded_once(recipe, name=name, output_dir=output_dir, command=command) as run:
        context = context_for(
            recipe,
            output_dir,
            resume=resume == "auto",
            trust_remote_code=trust_remote_code,
            run_name=run.name,
        )
        _check(recipe, run, context, origin=name, rehearsal=rehearsal)
        _work(recipe, run, context, jobs)
    return run


def _check(recipe: Recipe, run: Path, context: RunContext, *, origin: str, rehearsal: bool) -> None:
    """Refuse on the main process, for all, what cannot work; a finished training needs no rehearsal."""
    tokenizer = student_tokenizer(recipe, context)

    def check() -> None:
        check_recipe(recipe, tokenizer, context, origin=origin)
        if rehearsal and not _is_trained(recipe, tokenizer, run, context):
            rehearse(recipe, tokenizer, context, folder=run, origin=origin)

    on_main_process(check)


def _is_trained(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, run: Path, context: RunContext) -> bool:
    """Whether every teacher and student is finished, in this run's folder or as a stage."""
    folders = [student_folder(run, variant, seed) for variant in variants(recipe) for seed in recipe.seeds]
    if all((folder / STAGE).is_file() for folder in folders):
        return True
    teachers = finished_teachers(recipe, tokenizer, context)
    if teachers is None or "equal-compute" in recipe.controls:
        return False
    orders = (
        StudentJob(recipe, variant, seed, teachers, tokenizer, context)
        for variant in variants(recipe)
        for seed in recipe.seeds
    )
    return all(context.stages.path("model", student_key(order)).is_dir() for order in orders)


def _work(recipe: Recipe, run: Path, context: RunContext, jobs: int) -> None:
    values = plain(recipe)
    teachers = run_jobs(
        [
            Job(_teacher_job, (values, index, _named(context, jobs, teacher.name)))
            for index, teacher in enumerate(recipe.teachers)
        ],
        workers=jobs,
    )
    on_main_process(lambda: remember_teachers(run, _ready(teachers)))
    for wave in _waves(variants(recipe)):
        run_jobs(
            [
                Job(
                    _student_job,
                    (values, variant, seed, teachers, run, _named(context, jobs, f"{variant} {seed}")),
                )
                for variant in wave
                for seed in recipe.seeds
            ],
            workers=jobs,
        )
    if launched_processes() > 1:  # scoring is the first one's, but what is trained all train together
        for model in _scored_models(recipe, run, teachers):
            fine_tune(recipe, model, context)
    on_main_process(lambda: _report(recipe, run, teachers, context, jobs))


def _scored_models(recipe: Recipe, run: Path, teachers: Sequence[PreparedTeacher]) -> list[str]:
    """The folders or Hub ids of all models that the table has a row for."""
    own = [teacher for teacher in teachers if not teacher.is_only_read]
    models = dict.fromkeys(model for teacher in own for model in (teacher.original, teacher.model))
    folders = [student_folder(run, variant, seed) for variant in variants(recipe) for seed in recipe.seeds]
    return [*models, *(str(folder / "model") for folder in folders)]


def variants(recipe: Recipe) -> list[Variant]:
    """The recipe's student, then its controls."""
    return ["student", *recipe.controls]


def _waves(wanted: Sequence[Variant]) -> list[list[Variant]]:
    """Those that wait for no other first; then those that are given what the students computed."""
    later: list[Variant] = [variant for variant in wanted if variant == "equal-compute"]
    return [[variant for variant in wanted if variant not in later], *([later] if later else [])]


def student_folder(run: Path, variant: Variant, seed: int) -> Path:
    """Where one training of a run lies."""
    return run / "students" / variant / f"seed-{seed}"


def share_student(job: StudentJob, folder: Path) -> None:
    """Train a student in its run's folder, and share it: another run that wants the very same gets it."""
    stages, key = job.context.stages, student_key(job)
    if on_main_process(lambda: stages.holds(folder, "model", key)):
        return

    def build(stage: Path) -> None:
        train_student(job, folder, label=f"{job.variant} seed {job.seed}")
        on_main_process(lambda: copy_folder(folder, stage))

    shared = stages.make("model", key, build, together=True)
    on_main_process(lambda: copy_folder(shared, folder))


def _teacher_job(values: Values, index: int, context: RunContext) -> PreparedTeacher:
    recipe = from_values(values, origin="recipe")
    tokenizer = student_tokenizer(recipe, context)
    teacher = recipe.teachers[index]
    ready = prepare_teacher(recipe, teacher, tokenizer, context)
    if teacher.cache is not None and not ready.is_only_read:
        cached_teacher(recipe, teacher, ready.model, tokenizer, context)
    return ready


def _student_job(
    values: Values,
    variant: Variant,
    seed: int,
    teachers: Sequence[PreparedTeacher],
    run: Path,
    context: RunContext,
) -> None:
    recipe = from_values(values, origin="recipe")
    tokenizer = student_tokenizer(recipe, context)
    models = {teacher.name: teacher.model for teacher in teachers}
    flops = _flops_of_student(run, seed) if variant == "equal-compute" else None
    job = StudentJob(recipe, variant, seed, models, tokenizer, context, flops)
    share_student(job, student_folder(run, variant, seed))


def _flops_of_student(run: Path, seed: int) -> int:
    """What the student of this seed and its teachers computed while it was trained.

    Raises:
        CheckpointError: That was not counted.
    """
    folder = student_folder(run, "student", seed)
    flops = read_report(folder).flops
    if flops is None:
        raise CheckpointError(
            f"{folder}: its FLOPs were not counted (by an earlier version, or for an unknown family), which "
            "the control equal-compute needs; leave the control out, or delete this folder and the model in "
            "stages/ of which it is a copy"
        )
    return flops


def _ready(teachers: Sequence[PreparedTeacher]) -> dict[str, str]:
    """By name, what teaches and can be asked."""
    return {teacher.name: teacher.model for teacher in teachers if not teacher.is_only_read}


def _score_job(
    values: Values, model: str, context: RunContext, teachers: Mapping[str, str] | None
) -> list[SuiteResult]:
    """The scores of a student beside its teachers, or (None) of one of these."""
    recipe = from_values(values, origin="recipe")
    beside = None if teachers is None else TeacherSet(teachers, recipe)
    return kept_scores(recipe, model, context, beside=beside)


def _report(
    recipe: Recipe, run: Path, teachers: Sequence[PreparedTeacher], context: RunContext, jobs: int
) -> None:
    students: dict[str, list[Path]] = {
        variant: [student_folder(run, variant, seed) for seed in recipe.seeds] for variant in variants(recipe)
    }
    own = [teacher for teacher in teachers if not teacher.is_only_read]
    models = _scored_models(recipe, run, teachers)
    trained = {str(folder / "model") for folders in students.values() for folder in folders}
    beside = {model: _ready(teachers) if model in trained else None for model in models}
    scored = run_jobs(
        [
            Job(_score_job, (plain(recipe), model, _named(context, jobs, "eval"), beside[model]))
            for model in models
        ],
        workers=jobs if recipe.eval else 1,
    )
    copy_reports(teachers, run)
    trust = context.trust_remote_code
    by_model = {model: tuple(results) for model, results in zip(models, scored, strict=True)}
    rows = [row for teacher in own for row in _teacher_rows(teacher, by_model, trust)]
    taught = any(asking(recipe, teacher.name) for teacher in recipe.teachers)
    for variant, folders in students.items():
        for folder in folders:
            write_reports(by_model[str(folder / "model")], folder)
        reports = [read_report(folder) for folder in folders]
        rows.append(
            Row(
                name="distilled student" if variant == "student" and taught else variant,
                kind="student" if variant == "student" else "control",
                variant=variant,
                parameters=reports[0].parameters,
                tokens_of_text=max(report.tokens_of_text for report in reports),
                tokens_seen=max(report.tokens_seen for report in reports),
                steps=max(report.steps for report in reports),
                flops=_most(report.flops for report in reports),
                seeds=recipe.seeds,
                scores=tuple(by_model[str(folder / "model")] for folder in folders),
            )
        )
    tokenizer = student_tokenizer(recipe, context)
    domains = {}
    if recipe.language_task is not None:
        domains = tokens_by_domain(recipe, tokenizer, context)
    verdicts, notes = comparisons(rows)
    about_data = [
        *selection_remark(recipe),
        *recipe_notes(recipe, tokenizer, context),
        *text_remark(domains),
    ]
    remarks = [*weak_teachers(rows), *verdicts, *notes, *about_data]
    write_json(run / "results.json", as_json(rows, remarks, domains, verdicts=verdicts))
    write_text(run / "table.txt", _as_text(rows, remarks, title=run.name))
    write_explanations(rows, run)
    draw_curves(students, run / "curves.png", unit=UNITS[recipe.task])
    _write_cards(recipe, run, rows, remarks)


def _write_cards(recipe: Recipe, run: Path, rows: Sequence[Row], remarks: Sequence[str]) -> None:
    """A model card beside each student's and control's weights."""
    by_variant = {row.variant: row for row in rows}
    for variant in variants(recipe):
        for seed in recipe.seeds:
            folder = student_folder(run, variant, seed)
            model, row = folder / "model", by_variant[variant]
            report, family = read_report(folder), family_of(model)
            write_card(CardFacts(run.name, recipe, variant, seed, report, row, remarks, family), model)


def _teacher_rows(
    teacher: PreparedTeacher, scores: dict[str, tuple[SuiteResult, ...]], trust: bool
) -> Iterator[Row]:
    """The teacher as it was, and as it is with the student's vocabulary."""
    trained = read_report(teacher.training) if teacher.training is not None else None
    yield Row(
        name=f"teacher {teacher.name}",
        kind="teacher",
        teaches=teacher.adaptation is None,
        parameters=trained.parameters if trained else parameters_of(teacher.original, trust),
        tokens_of_text=trained.tokens_of_text if trained else None,
        tokens_seen=trained.tokens_seen if trained else None,
        steps=trained.steps if trained else None,
        flops=trained.flops if trained else None,
        seeds=(),
        scores=(scores[teacher.original],),
    )
    if teacher.adaptation is not None:
        adapted = read_adaptation(teacher.adaptation)
        yield Row(
            name=f"teacher {teacher.name}, adapted",
            kind="adapted",
            teaches=True,
            parameters=parameters_of(teacher.model, trust),
            tokens_of_text=adapted.tokens_of_text,
            tokens_seen=adapted.tokens_seen,
            steps=adapted.steps,
            flops=adapted.flops,
            seeds=(),
            scores=(scores[teacher.model],),
        )


def _most(counts: Iterable[int | None]) -> int | None:
    """The largest; None where one is not known."""
    found = list(counts)
    known = [count for count in found if count is not None]
    return max(known) if len(known) == len(found) else None


def parameters_of(model: str, trust: bool) -> int:
    """The parameters that a model has by its configuration; its weights are not read."""
    return count_parameters(empty_model(model, trust_remote_code=trust))


def _as_text(rows: Sequence[Row], remarks: Sequence[str], *, title: str) -> str:
    text, table = StringIO(), result_table(rows, title)
    console = Console(file=text, width=width_of(table))
    console.print(table)
    for remark in remarks:
        console.print(Text(remark), soft_wrap=True)
    return text.getvalue()


def _named(context: RunContext, jobs: int, name: str) -> RunContext:
    return replace(context, quiet_name=name) if jobs > 1 else context
