"""Validate that a recipe's data, teachers and student fit together, before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch
from transformers import BertConfig, PretrainedConfig, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer, same_vocabulary
from stlm_kd.distributed import launched_processes
from stlm_kd.errors import (
    DataError,
    MissingResourceError,
    ModelError,
    RecipeError,
    RecipeFault,
    error_context,
)
from stlm_kd.models.architectures.distilbert import distilbert_config
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.heads.class_names import check_classes, class_order
from stlm_kd.models.heads.classifiers import class_names, kind_of, load_classifier
from stlm_kd.models.load import check_task, load_config
from stlm_kd.models.positions import num_positions
from stlm_kd.models.students import check_family, choose_layers
from stlm_kd.pipeline.builders.data import build_training_data
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.interchange import check_sources
from stlm_kd.pipeline.builders.models import load_model, teacher_place
from stlm_kd.pipeline.builders.objective import feature_faults, feature_teachers
from stlm_kd.pipeline.checks.fitting import check_room, is_cached, is_prepared
from stlm_kd.pipeline.checks.requirements import require_deepspeed
from stlm_kd.pipeline.checks.room import room_here
from stlm_kd.pipeline.checks.vocabularies import another_vocabulary, note_lacking_tokens
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stages.cache_reading import cache_faults
from stlm_kd.pipeline.stages.score import check_rows, suite_calls
from stlm_kd.pipeline.stages.student import initial_student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.teacher_cache import cache_jobs
from stlm_kd.pipeline.stages.tokenizer import own_tokenizer, setup_of
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.recipe.schema.student import InitFrom
from stlm_kd.recipe.validation.recipe import uneven_batches
from stlm_kd.sharing.names import expanded
from stlm_kd.teachers.cache.format import read_manifest
from stlm_kd.teachers.units import unshardable
from stlm_kd.tracking.experiment import require_wandb
from stlm_kd.vocabulary.token_bytes import vocabulary_size
from stlm_kd.vocabulary.translation import translation_faults


def check_recipe(setup: RecipeSetup, *, origin: str, is_finished: Callable[[], bool] = lambda: False) -> None:
    """Validate that a recipe's parts fit together, and those of its teachers' recipes.

    Text tokenised here is cached for the run. ``is_finished``: whether nothing is left to train, so that
    teachers need no room in memory, and the engine no package.

    Raises:
        RecipeError: All faults at once: vocabularies that differ without ``adapt``, a model of another task,
            too few positions, batches that cannot be split among the processes, or a teacher that is larger
            than the memory.
        DataError, MissingResourceError: Data is missing or too short; DeepSpeed is not installed.
        ModelError: A model cannot be loaded or built.
        UsageError: lm-eval does not know a task.
    """
    recipe, tokenizer, context = setup.recipe, setup.tokenizer, setup.context
    if context.zero is not None and not is_finished():
        require_deepspeed(f"{origin}: engine.deepspeed")
    for teacher in recipe.teachers:
        if teacher.recipe is not None:
            inner = setup_of(teacher.recipe, context)
            check_recipe(
                inner,
                origin=f"{origin}, recipe of teacher {teacher.name}",
                is_finished=partial(is_prepared, teacher, setup),
            )
    faults = []
    for teacher in recipe.teachers:
        place = teacher_place(recipe, teacher.name)
        with error_context(f"{origin}: {place}"):
            faults += list(_teacher_faults(place, teacher, setup))
    faults += uneven_batches(recipe, launched_processes())
    if recipe.task == "mlm" and tokenizer.mask_token_id is None:
        message = (
            "it has no mask token, which a masked language model needs; use the tokenizer of such a model"
        )
        faults.append(RecipeFault("student.tokenizer", message))
    with error_context(f"{origin}: student.model"):
        faults += _student_faults(setup)
    if faults:
        raise RecipeError(origin, faults)
    with error_context(origin):
        _check_features(recipe, context, origin)
        check_sources(recipe, tokenizer)
        check_room(setup, origin, is_finished, room_here())
        _try_teachers(setup)
        _try_student(setup)
    _try_tools(recipe)
    _check_data(setup)


def _check_data(setup: RecipeSetup) -> None:
    """Read all data: tokenises the text, and draws examples with the first seed."""
    seed = setup.recipe.seeds[0]
    found = build_training_data(setup, fraction=None, seed=seed, readers={}).num_rows
    if found < launched_processes():
        raise DataError(
            f"data.train: {found} rows for {launched_processes()} processes, each of which needs one; "
            "use fewer processes, more text or a shorter data.context"
        )


def _teacher_faults(place: str, teacher: Teacher, setup: RecipeSetup) -> Iterator[RecipeFault]:
    recipe, tokenizer, context = setup.recipe, setup.tokenizer, setup.context
    if teacher.cache is not None and teacher.cache.path is not None:
        yield from _cache_faults(f"{place}.cache", teacher, setup)
        return
    config = teacher_config(teacher, context)
    if other_task := _task_fault(place, config, recipe):
        yield other_task
        return
    own = own_tokenizer(teacher, context)
    if teacher.placement == "shard" and config.model_type not in ARCHITECTURES:
        yield RecipeFault(f"{place}.placement", unshardable(config.model_type))
    yield from _classes_fault(place, teacher, config, recipe)
    yield from size_faults(place, config, None if teacher.model is None else own, recipe)
    if teacher.adapt is not None:
        note_lacking_tokens(place, teacher.adapt, own, tokenizer)
    elif teacher.translate:
        yield from (RecipeFault(f"{place}.translate", fault) for fault in translation_faults(own, tokenizer))
    elif _reads_as_the_student(teacher, recipe) and not same_vocabulary(own, tokenizer):
        yield RecipeFault(place, another_vocabulary(own, tokenizer, task=recipe.task))


def _cache_faults(place: str, teacher: Teacher, setup: RecipeSetup) -> Iterator[RecipeFault]:
    """Faults of a given cache that does not match the data, vocabulary or teacher, for any seed."""
    assert teacher.cache is not None and teacher.cache.path is not None
    path = teacher.cache.path
    if not expanded(path).exists():
        hint = " (did you mean auto?)" if get_close_matches(path, ["auto"]) else ""
        raise MissingResourceError(
            f"cache: {path} is not auto, and no such folder exists (seen from {Path.cwd()}){hint}; "
            "name a cache's folder, or make one by cache: auto"
        )
    manifest = read_manifest(expanded(path))
    jobs = cache_jobs(setup, teacher, teacher.model or "")
    for fault in dict.fromkeys(fault for job in jobs for fault in cache_faults(job, manifest)):
        yield RecipeFault(place, f"{path} is not a cache for this recipe: {fault}")


def _reads_as_the_student(teacher: Teacher, recipe: Recipe) -> bool:
    """Whether the teacher must share the student's vocabulary; a classifier used by logits alone need not."""
    if recipe.language_task is not None:
        return True
    init_from = recipe.student.init_from
    return teacher.name in feature_teachers(recipe) or (
        init_from is not None and init_from.teacher == teacher.name
    )


def _student_faults(setup: RecipeSetup) -> Iterator[RecipeFault]:
    recipe, tokenizer = setup.recipe, setup.tokenizer
    name, trust = recipe.student.model, setup.context.trust_remote_code
    if name is None:
        return
    config = load_config(name, trust_remote_code=trust)
    if other_task := _task_fault("student.model", config, recipe):
        yield other_task
        return
    known = load_tokenizer(name, trust_remote_code=trust)
    yield from size_faults("student.model", config, known, recipe)
    if not same_vocabulary(known, tokenizer):
        message = (
            f"its vocabulary ({len(known)} tokens) is not that of student.tokenizer "
            f"({len(tokenizer)} tokens); name the same folder as tokenizer, or start from a preset"
        )
        yield RecipeFault("student.model", message)


def _task_fault(place: str, config: PretrainedConfig, recipe: Recipe) -> RecipeFault | None:
    try:
        if recipe.language_task is not None:
            check_task(config, recipe.language_task, place=place)
    except ModelError as error:
        return RecipeFault(place, str(error).removeprefix(f"{place}: "))
    return None


def _classes_fault(
    place: str, teacher: Teacher, config: PretrainedConfig, recipe: Recipe
) -> Iterator[RecipeFault]:
    """A fault if the classes differ from the data's, also for a teacher yet to be trained or a cached one."""
    if recipe.task != "classification":
        return
    if teacher.recipe is not None:
        own = class_names_of(teacher.recipe)
    elif kind_of(config) == "classification":
        own = class_names(config)
    else:
        return  # a model without a classification head raises an error on loading
    name, labels = teacher.model or "its recipe", class_names_of(recipe)
    try:
        if teacher.classes is not None:
            class_order(name, own, labels, teacher.classes)
        else:
            check_classes(name, own, labels)
    except ModelError as error:
        yield RecipeFault(place, str(error))


def size_faults(
    place: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast | None, recipe: Recipe
) -> Iterator[RecipeFault]:
    """Too few positions for the recipe's rows, or too few rows of the embedding for the model's tokenizer."""
    positions, context = num_positions(config), recipe.data.context
    if positions is not None and positions < context:
        yield RecipeFault(place, f"it has {positions} positions, but data.context is {context}; shorten it")
    rows = getattr(config, "vocab_size", None)
    if tokenizer is not None and isinstance(rows, int) and rows < (needed := vocabulary_size(tokenizer)):
        message = (
            f"its embedding has {rows} rows, but its tokenizer ids up to {needed - 1}; "
            "use the tokenizer that it was trained with"
        )
        yield RecipeFault(place, message)


def _try_teachers(setup: RecipeSetup) -> None:
    """Load each teacher once, to find damaged ones before training."""
    recipe, context = setup.recipe, setup.context
    for teacher in recipe.teachers:
        if teacher.model is None or is_cached(teacher, setup):
            continue
        with error_context(teacher_place(recipe, teacher.name)):
            own, trust = own_tokenizer(teacher, context), context.trust_remote_code
            if teacher.classes is not None:  # already compared with the data's classes
                load_classifier(teacher.model, None, tokenizer=own, trust_remote_code=trust)
                continue
            load_model(teacher.model, recipe, tokenizer=own, trust_remote_code=trust, dtype=torch.bfloat16)


def _try_student(setup: RecipeSetup) -> None:
    """Build the student once, or check that its teacher has the layers."""
    recipe, context = setup.recipe, setup.context
    init_from = recipe.student.init_from
    if init_from is not None:
        (teacher,) = (teacher for teacher in recipe.teachers if teacher.name == init_from.teacher)
        if init_from.model_type is not None:
            family = teacher_config(teacher, context).model_type
            check_family(family, init_from.model_type, place="student.init_from.model_type")
        student_config(recipe, context)
    elif recipe.student.has_body:
        initial_student(StudentJob.of(setup, "student", recipe.seeds[0], {}))


def _try_tools(recipe: Recipe) -> None:
    """Check the requirements of trackers and of the final evaluation: tasks and their data, packages."""
    if "wandb" in recipe.tracking:
        require_wandb()
    check_rows(suite_calls(recipe))


def teacher_config(teacher: Teacher, context: RunContext) -> PretrainedConfig:
    """The teacher's configuration, or the one that its recipe will give it."""
    if teacher.recipe is None:
        assert teacher.model is not None
        return load_config(teacher.model, trust_remote_code=context.trust_remote_code)
    return student_config(teacher.recipe, context)


def student_config(recipe: Recipe, context: RunContext) -> PretrainedConfig:
    """The configuration of a recipe's student."""
    wanted, trust = recipe.student, context.trust_remote_code
    if wanted.model is not None:
        return load_config(wanted.model, trust_remote_code=trust)
    if wanted.init_from is None:
        return initial_student(StudentJob.of(setup_of(recipe, context), "student", 0, {})).config
    (source,) = (entry for entry in recipe.teachers if entry.name == wanted.init_from.teacher)
    return config_of_layers(teacher_config(source, context), wanted.init_from)


def config_of_layers(teacher: PretrainedConfig, init_from: InitFrom) -> PretrainedConfig:
    """The configuration of a student of some of a teacher's layers."""
    config = deepcopy(teacher)
    chosen = choose_layers(config.num_hidden_layers, init_from.layers, place="student.init_from.layers")
    if isinstance(config, BertConfig) and init_from.model_type == "distilbert":
        return distilbert_config(config, len(chosen))
    config.num_hidden_layers = len(chosen)
    return config


def _check_features(recipe: Recipe, context: RunContext, origin: str) -> None:
    if not feature_teachers(recipe):
        return
    own = [teacher for teacher in recipe.teachers if teacher.model is not None or teacher.recipe is not None]
    teachers = {teacher.name: teacher_config(teacher, context) for teacher in own}
    faults = list(feature_faults(recipe, student_config(recipe, context), teachers))
    if faults:
        raise RecipeError(origin, faults)
