"""The stages of a recipe by their digests: those that are known before anything is trained, and a run's."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from stlm_kd.artifacts.stage_store import StageRecord, Stages
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stage_keys import adaptation_key, student_key
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.students import student_folders, variants
from stlm_kd.pipeline.stages.teacher import PreparedTeacher
from stlm_kd.pipeline.stages.tokenizer import made_tokenizer_key, setup_of, source_teachers
from stlm_kd.recipe import Recipe
from stlm_kd.sharing.names import expanded, hub_name_or_path


def known_stages(recipe: Recipe) -> dict[str, str]:
    """The digests of stages that are known before anything is trained: all their inputs are named.

    They differ from those of a lock if this version of the program makes another stage of the same inputs.

    Raises:
        MissingResourceError: A tokenizer or a text is missing.
    """
    stages = Stages(Path())
    if any(one.model is None or _has_code(one.model) for one in source_teachers(recipe)):
        return {}  # a tokenizer that the student's is made of is made itself, or rests on trust
    if (made := made_tokenizer_key(recipe, RunContext(Path()))) is not None:
        return {"student.tokenizer": _digest_in(stages.path("tokenizer", made))}
    if recipe.language_task is None:  # the names of classes are in the data
        return {}
    if any(_has_code(name) for name in (recipe.student.model, *(one.model for one in recipe.teachers))):
        return {}  # which counts if it is trusted
    found, models = {}, {}
    setup = setup_of(recipe, RunContext(Path()))
    for teacher in recipe.teachers:
        if teacher.model is None or teacher.classes is not None or teacher.cache is not None:
            continue
        if teacher.adapt is None:
            models[teacher.name] = teacher.model
            continue
        key = adaptation_key(recipe, teacher.adapt, teacher.model, setup.tokenizer, trust=False)
        found[f"teachers.{teacher.name}.adapted"] = _digest_in(stages.path("adapted", key))
    students = [] if recipe.adapts_only else variants(recipe)
    for variant, seed in itertools.product(students, recipe.seeds):
        if variant == "equal-compute":  # whose FLOPs are known once the student is trained
            continue
        job = StudentJob.of(setup, variant, seed, models)
        init_from = recipe.student.init_from
        needed = job.used_teachers | ({init_from.teacher} if init_from is not None else set())
        if needed <= models.keys():
            found[f"{variant}.seed-{seed}"] = _digest_in(stages.path("model", student_key(job)))
    return found


def _has_code(model: str | None) -> bool:
    """Whether a model is a folder with code of its own."""
    is_local = model is not None and hub_name_or_path(model) is None
    return is_local and any(expanded(model or "").glob("*.py"))


def _digest_in(stage: Path) -> str:
    """The digest in the name of a stage's folder."""
    return stage.name.rpartition("-")[2]


def stages_of(
    recipe: Recipe, run: Path, teachers: Sequence[PreparedTeacher], context: RunContext
) -> Iterator[tuple[str, Path, Path | None]]:
    """Place and folder of each stage, and the run's copy of the model in it, if it has one."""
    if (made := made_tokenizer_key(recipe, context)) is not None:
        yield "student.tokenizer", context.stages.path("tokenizer", made), None
    for teacher in teachers:
        place = f"teachers.{teacher.name}"
        if teacher.training is not None:
            yield f"{place}.trained", teacher.training, None
        renamed = StageRecord.of(Path(teacher.original).parent)
        if renamed is not None and renamed.kind == "renamed":
            yield f"{place}.renamed", Path(teacher.original).parent, None
        if teacher.adaptation is not None:
            yield f"{place}.adapted", teacher.adaptation, run / "teachers" / teacher.name
    for variant, folders in student_folders(recipe, run).items():
        for seed, folder in zip(recipe.seeds, folders, strict=True):
            if StageRecord.of(folder) is not None:  # none in a run of adapt-teacher
                yield f"{variant}.seed-{seed}", folder, folder / "model"
