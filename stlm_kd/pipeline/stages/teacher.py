"""Prepare a recipe's teachers: train, rename classes, adapt the vocabulary, cache outputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.artifacts.run_dir import ADAPTATION, KEPT, TRAINING, provenance_folder
from stlm_kd.artifacts.stage_store import Key, Stages
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import error_context
from stlm_kd.models.heads.class_names import class_order
from stlm_kd.models.heads.classifiers import class_names, load_classifier, rename_classes
from stlm_kd.models.load import save_model
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.models import teacher_place
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.stage_keys import adaptation_key, renamed_key, student_key
from stlm_kd.pipeline.stages.adaptation import adapt_model
from stlm_kd.pipeline.stages.student import train_student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.teacher_cache import cache_jobs
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import from_values, values_of
from stlm_kd.recipe.schema.root import Teacher


@dataclass(frozen=True, slots=True)
class PreparedTeacher:
    """A teacher that is ready for distillation.

    Attributes:
        original: Folder or Hub id before adaptation.
        training: The folder of its training; None for an existing model.
        adaptation: The folder of its adaptation; None for a teacher with the student's vocabulary.
        is_only_read: Whether only an existing cache of the teacher is used.
    """

    name: str
    original: str
    training: Path | None
    adaptation: Path | None
    is_only_read: bool = False

    @property
    def model(self) -> str:
        """Folder or Hub id to load."""
        return self.original if self.adaptation is None else str(self.adaptation / "model")


def build_teachers(recipe: Recipe, context: RunContext, jobs: int) -> list[PreparedTeacher]:
    """Prepare all teachers of the recipe in parallel jobs: train, adapt and cache them where necessary."""
    values = values_of(recipe)
    return run_jobs(
        [
            Job(_build_teacher, (values, index, context.named(teacher.name, jobs)))
            for index, teacher in enumerate(recipe.teachers)
        ],
        workers=jobs,
    )


def _build_teacher(values: dict[str, Any], index: int, context: RunContext) -> PreparedTeacher:
    setup = setup_of(from_values(values, origin="recipe"), context)
    teacher = setup.recipe.teachers[index]
    ready = prepare_teacher(setup, teacher)
    if teacher.cache is not None and not ready.is_only_read:
        cached_teacher(setup, teacher, ready.model)
    return ready


def prepare_teacher(setup: RecipeSetup, teacher: Teacher) -> PreparedTeacher:
    """Train and adapt a teacher as the recipe requires; existing stages are reused."""
    if teacher.cache is not None and teacher.cache.path is not None:
        return PreparedTeacher(
            teacher.name, teacher.model or teacher.cache.path, None, None, is_only_read=True
        )
    with error_context(teacher_place(setup.recipe, teacher.name)):
        return _build_stages(setup, teacher)


def _build_stages(setup: RecipeSetup, teacher: Teacher) -> PreparedTeacher:
    recipe, context = setup.recipe, setup.context
    training = _train(teacher.recipe, teacher.name, context) if teacher.recipe is not None else None
    original = str(training / "model") if training is not None else teacher.model
    assert original is not None
    if teacher.classes is not None:
        original = str(_rename_classes(recipe, original, teacher, context) / "model")
    if teacher.adapt is None:
        return PreparedTeacher(teacher.name, original, training, None)
    adapt = teacher.adapt

    def build(folder: Path) -> None:
        with doing(f"adapting {teacher.name}"):
            adapt_model(setup, adapt, original, name=teacher.name, folder=folder)

    key = adaptation_key(recipe, adapt, original, setup.tokenizer, trust=context.trust_remote_code)
    what = f"teacher {teacher.name}, adapted"
    adapted = context.stages.make("adapted", key, build, what=what, together=True)
    return PreparedTeacher(teacher.name, original, training, adapted)


def _rename_classes(recipe: Recipe, model: str, teacher: Teacher, context: RunContext) -> Path:
    """A copy of a classifier with its classes renamed and reordered to match the data."""
    trust, labels, classes = context.trust_remote_code, class_names_of(recipe), teacher.classes or {}

    def build(folder: Path) -> None:
        tokenizer = load_tokenizer(model, trust_remote_code=trust)
        own = load_classifier(model, None, tokenizer=tokenizer, trust_remote_code=trust)
        order = class_order(model, class_names(own.config), labels, classes)
        rename_classes(own, order, labels, name=model)
        save_model(own, tokenizer, folder / "model")

    key = renamed_key(recipe, model, classes, trust=trust)
    what = f"teacher {teacher.name}, classes renamed"
    return on_main_process(lambda: context.stages.make("renamed", key, build, what=what))


def cached_teacher(setup: RecipeSetup, teacher: Teacher, model: str) -> list[Path]:
    """The caches of a prepared teacher: one, or one per seed if seeds draw different examples."""
    return [job.ensure() for job in cache_jobs(setup, teacher, model)]


def _train(recipe: Recipe, name: str, context: RunContext) -> Path:
    setup = setup_of(recipe, context)
    teachers = {teacher.name: prepare_teacher(setup, teacher).model for teacher in recipe.teachers}
    (seed,) = recipe.seeds
    job = StudentJob.of(setup, "student", seed, teachers)

    def build(folder: Path) -> None:
        train_student(job, folder, label=f"teacher {name}")

    return context.stages.make("model", student_key(job), build, what=f"teacher {name}", together=True)


def finished_teachers(setup: RecipeSetup) -> dict[str, str] | None:
    """The teachers' folders or Hub ids by name; None if one has yet to be trained or adapted."""
    found = {}
    for teacher in setup.recipe.teachers:
        model = finished_teacher(setup, teacher)
        if model is None:
            return None
        found[teacher.name] = model
    return found


def finished_teacher(setup: RecipeSetup, teacher: Teacher) -> str | None:
    """A teacher's folder or Hub id; None if it has yet to be trained or adapted."""
    recipe, context = setup.recipe, setup.context
    if teacher.cache is not None and teacher.cache.path is not None:
        return teacher.model or teacher.cache.path
    model = teacher.model
    if teacher.recipe is not None:
        inner = setup_of(teacher.recipe, context)
        teachers = finished_teachers(inner)
        if teachers is None:
            return None
        (seed,) = teacher.recipe.seeds
        job = StudentJob.of(inner, "student", seed, teachers)
        model = _model_of(context.stages, "model", student_key(job))
    trust = context.trust_remote_code
    if teacher.classes is not None and model is not None:
        named = renamed_key(recipe, model, teacher.classes, trust=trust)
        model = _model_of(context.stages, "renamed", named)
    if teacher.adapt is None or model is None:
        return model
    key = adaptation_key(recipe, teacher.adapt, model, setup.tokenizer, trust=trust)
    return _model_of(context.stages, "adapted", key)


def _model_of(stages: Stages, kind: str, key: Key) -> str | None:
    return str(stages.path(kind, key) / "model") if stages.has(kind, key) else None


def copy_reports(teachers: Iterable[PreparedTeacher], run: Path) -> None:
    """Copy the stages' reports and metrics to the run, since stages may be moved or deleted."""
    for teacher in teachers:
        for kind, stage in ((TRAINING, teacher.training), (ADAPTATION, teacher.adaptation)):
            if stage is None:
                continue
            with written_whole(provenance_folder(run) / teacher.name / kind) as unfinished:
                unfinished.mkdir(parents=True)
                for name in KEPT:
                    if (stage / name).is_file():
                        shutil.copy2(stage / name, unfinished / name)
