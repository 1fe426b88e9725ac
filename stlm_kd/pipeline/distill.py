"""The command ``distill``: teachers, adaptation, students and controls, evaluation, results table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from stlm_kd.artifacts.results import Variant
from stlm_kd.distributed import launched_processes, on_main_process
from stlm_kd.errors import UsageError
from stlm_kd.pipeline.checks.rehearsal import rehearse
from stlm_kd.pipeline.checks.validate import check_recipe
from stlm_kd.pipeline.context import RecipeSetup, context_for
from stlm_kd.pipeline.locks import lock_of, write_lock
from stlm_kd.pipeline.recording import keep_pins, recorded_once
from stlm_kd.pipeline.results import write_results
from stlm_kd.pipeline.run import Run
from stlm_kd.pipeline.stages.score import fine_tune, score_models
from stlm_kd.pipeline.stages.students import build_students, is_trained
from stlm_kd.pipeline.stages.teacher import PreparedTeacher, build_teachers
from stlm_kd.pipeline.stages.teacher_set import remember_teachers
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe, named_recipe
from stlm_kd.recipe.lock import Lock


def distill(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    output_dir: str | PathLike[str] = "runs",
    resume: bool = True,
    update: bool = False,
    jobs: int = 1,
    rehearsal: bool = True,
    trust_remote_code: bool = False,
    command: str = "",
) -> Run:
    """Run a recipe: adapt the teachers, distil the students and controls, evaluate them.

    Finished stages are found again by their content. The run's folder gets ``results.json``, ``table.txt``,
    ``curves.png``, the models, and ``recipe.lock``: what was used and made.

    Args:
        recipe: A recipe, a file, or a built-in name such as ``sample-two-teachers``.
        overrides: Changes ``key.path=value``, for a recipe given by name.
        name: The run's name; default: that of the recipe's file, or ``recipe``.
        output_dir: Contains all runs and their shared stages.
        resume: Whether to resume unfinished work.
        update: Whether to follow names on the Hub that have moved since the run's last start.
        jobs: Number of parallel trainings and evaluations; with more than one, a script that calls this needs
            ``if __name__ == "__main__":``.
        rehearsal: Whether to save, load and score each model once before training.
        trust_remote_code: Whether to run code shipped with a model.
        command: The command line, for the record.

    Raises:
        RecipeError: The recipe is invalid; holds all faults found.
        UsageError: The recipe trains no student; or ``jobs`` together with several processes.
        StlmKdError: A stage failed; the message names the place and what to do.

    """
    recipe, name = named_recipe(recipe, overrides, name)
    if recipe.adapts_only:
        raise UsageError(f"{name}: trains no student; adapt its teachers by adapt-teacher")
    if jobs > 1 and launched_processes() > 1:
        raise UsageError(
            f"--jobs {jobs} with {launched_processes()} processes: trainings run either side by side or in "
            "several processes each; leave one of them out"
        )
    output_dir = Path(output_dir)
    with recorded_once(recipe, name=name, output_dir=output_dir, command=command, update=update) as run:
        context = context_for(
            recipe, output_dir, resume=resume, trust_remote_code=trust_remote_code, run_name=run.name
        )
        setup = setup_of(recipe, context)
        begun = on_main_process(lambda: _check(setup, run, origin=name, rehearsal=rehearsal))
        teachers = build_teachers(recipe, context, jobs)
        reference_models = {teacher.name: teacher.model for teacher in teachers if not teacher.is_only_read}
        on_main_process(lambda: remember_teachers(run, reference_models))
        students = build_students(recipe, teachers, run, context, jobs)
        compared = _reference_teachers(teachers, students, reference_models)
        if launched_processes() > 1:  # fine-tuning is training, so all processes take part
            for model in compared:
                fine_tune(recipe, model, context)

        def finish() -> None:
            scores = score_models(recipe, list(compared), compared, context, jobs)
            write_results(recipe, run, teachers, students, scores, context)
            write_lock(recipe, run, teachers, context, begun=begun)

        on_main_process(finish)
    return Run(run)


def _reference_teachers(
    teachers: Sequence[PreparedTeacher],
    students: Mapping[Variant, Sequence[Path]],
    reference_models: Mapping[str, str],
) -> dict[str, Mapping[str, str] | None]:
    """Each model to score, with the teachers to compare it with; None for a teacher."""
    own = [teacher for teacher in teachers if not teacher.is_only_read]
    found: dict[str, Mapping[str, str] | None] = {
        model: None for teacher in own for model in (teacher.original, teacher.model)
    }
    return found | {
        str(folder / "model"): reference_models for folders in students.values() for folder in folders
    }


def _check(setup: RecipeSetup, run: Path, *, origin: str, rehearsal: bool) -> Lock:
    """Validate the recipe and find what its names mean; rehearse unless all trainings are finished."""
    check_recipe(setup, origin=origin, is_finished=lambda: is_trained(setup, run))
    begun = lock_of(setup.recipe)
    keep_pins(run)
    if rehearsal and not is_trained(setup, run):
        rehearse(setup, folder=run, origin=origin)
    return begun
