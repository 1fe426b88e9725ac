"""Train all students and controls of a recipe in the run folder, and share them between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stlm_kd.artifacts.reports import read_report
from stlm_kd.artifacts.results import Variant
from stlm_kd.artifacts.stage_store import STAGE, copy_folder
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import CheckpointError
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.stage_keys import student_key
from stlm_kd.pipeline.stages.student import train_student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.teacher import PreparedTeacher, finished_teachers
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe, from_values, values_of

Values = dict[str, Any]  # a recipe as plain values, picklable for other processes


def build_students(
    recipe: Recipe, teachers: Sequence[PreparedTeacher], run: Path, context: RunContext, jobs: int
) -> dict[Variant, list[Path]]:
    """Train every variant with every seed in parallel jobs; return the folders by variant, one per seed."""
    values = values_of(recipe)
    everything = variants(recipe)
    first = [variant for variant in everything if variant != "equal-compute"]
    later = [variant for variant in everything if variant not in first]  # needs the students' FLOPs
    for wave in (first, later):
        run_jobs(
            [
                Job(
                    _build_student,
                    (values, variant, seed, teachers, run, context.named(f"{variant} {seed}", jobs)),
                )
                for variant in wave
                for seed in recipe.seeds
            ],
            workers=jobs,
        )
    return student_folders(recipe, run)


def variants(recipe: Recipe) -> list[Variant]:
    """The recipe's student, then its controls."""
    return ["student", *recipe.controls]


def student_folders(recipe: Recipe, run: Path) -> dict[Variant, list[Path]]:
    """The training folders by variant, one per seed."""
    return {
        variant: [student_folder(run, variant, seed) for seed in recipe.seeds] for variant in variants(recipe)
    }


def has_folders(recipe: Recipe, run: Path) -> bool:
    """Whether every student is finished in the run's folder."""
    folders = student_folders(recipe, run).values()
    return all((folder / STAGE).is_file() for seeds in folders for folder in seeds)


def is_trained(setup: RecipeSetup, run: Path) -> bool:
    """Whether every student is finished in the run's folder, or all models are in the stage store."""
    recipe = setup.recipe
    if has_folders(recipe, run):
        return True
    teachers = finished_teachers(setup)
    if teachers is None or "equal-compute" in recipe.controls:
        return False
    jobs = [StudentJob.of(setup, one, seed, teachers) for one in variants(recipe) for seed in recipe.seeds]
    return all(setup.context.stages.path("model", student_key(job)).is_dir() for job in jobs)


def student_folder(run: Path, variant: Variant, seed: int) -> Path:
    """The folder of one training of a run."""
    return run / "students" / variant / f"seed-{seed}"


def share_student(job: StudentJob, folder: Path) -> None:
    """Train a student in its run folder and share it as a stage, or copy it from an existing stage."""
    stages, key, what = job.context.stages, student_key(job), f"{job.variant} seed {job.seed}"
    if on_main_process(lambda: stages.holds(folder, "model", key)):
        on_main_process(lambda: stages.use(stages.path("model", key), what))
        return

    def build(stage: Path) -> None:
        train_student(job, folder, label=what)
        on_main_process(lambda: copy_folder(folder, stage))

    shared = stages.make("model", key, build, what=what, together=True)
    on_main_process(lambda: copy_folder(shared, folder))


def _build_student(
    values: Values,
    variant: Variant,
    seed: int,
    teachers: Sequence[PreparedTeacher],
    run: Path,
    context: RunContext,
) -> None:
    setup = setup_of(from_values(values, origin="recipe"), context)
    models = {teacher.name: teacher.model for teacher in teachers}
    flops = _flops_of_student(run, seed) if variant == "equal-compute" else None
    job = StudentJob.of(setup, variant, seed, models, flops)
    share_student(job, student_folder(run, variant, seed))


def _flops_of_student(run: Path, seed: int) -> int:
    folder = student_folder(run, "student", seed)
    flops = read_report(folder).flops
    if flops is None:
        raise CheckpointError(
            f"{folder}: its FLOPs were not counted (by an earlier version, or for an unknown family), which "
            "the control equal-compute needs; leave the control out, or delete this folder and the model in "
            "stages/ of which it is a copy"
        )
    return flops
