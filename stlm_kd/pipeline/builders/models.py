"""Load, build and check models for a recipe's task: language models or classifiers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distributed import launched_processes, process_rank
from stlm_kd.errors import error_context
from stlm_kd.models.capabilities import check_forward, check_trees, require_paths
from stlm_kd.models.heads.classifiers import check_classifier, classifier_from_fields, load_classifier
from stlm_kd.models.load import declared_task, load_config, load_language_model, model_class, to_device
from stlm_kd.models.students import student_from_fields
from stlm_kd.pipeline.builders.data import PackedText, TrainingData
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.objective import paths_into
from stlm_kd.pipeline.builders.translating import translation_of
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.schema.root import Teacher
from stlm_kd.sharing.pins import current
from stlm_kd.teachers import Placement
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.translated import TranslatedTeacher
from stlm_kd.training.config import Precision
from stlm_kd.training.processes import current_device
from stlm_kd.vocabulary.token_bytes import vocabulary_size


def load_model(
    name: str,
    recipe: Recipe,
    *,
    tokenizer: PreTrainedTokenizerFast | None,
    trust_remote_code: bool,
    head_seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load a model (folder or Hub id) for the recipe's task and classes, in evaluation mode.

    ``tokenizer`` is a classifier's; None for the model's own. ``head_seed`` initialises a missing head; None
    makes that an error, as the others of ``load_language_model`` and ``load_classifier``.
    """
    if recipe.language_task is not None:
        return load_language_model(
            name, recipe.language_task, trust_remote_code=trust_remote_code, dtype=dtype, head_seed=head_seed
        )
    return load_classifier(
        name,
        class_names_of(recipe),
        tokenizer=tokenizer or load_tokenizer(name, trust_remote_code=trust_remote_code),
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        head_seed=head_seed,
    )


def live_teacher(place: str, setup: RecipeSetup, training_data: TrainingData, *, name: str) -> LiveTeacher:
    """Load a teacher (folder or Hub id) in the recipe's precision, to the placement that it has here.

    All processes must call this, since they may divide the weights.
    """
    recipe, trust = setup.recipe, setup.context.trust_remote_code
    (entry,) = (teacher for teacher in recipe.teachers if teacher.name == name)
    dtype = torch.bfloat16 if teacher_precision(entry) == "bf16" else torch.float32
    placement = placement_here(entry, launched_processes())
    with error_context(teacher_place(recipe, name)):
        tokenizer = load_tokenizer(place, trust_remote_code=trust)
        model = load_model(place, recipe, tokenizer=tokenizer, trust_remote_code=trust, dtype=dtype)
        if placement == "replicate":
            to_device(model, current_device())
        check_model(model, recipe, teacher=name, name=place)
        if not entry.translate:
            return LiveTeacher(model, vocabulary_size(tokenizer), name=name, placement=placement)
        assert isinstance(training_data, PackedText), "refused with the recipe"
        if process_rank() == 0:
            check_trees(model, name=place)
        translation = translation_of(
            tokenizer, setup.tokenizer, training_data, place=teacher_place(recipe, name)
        )
        return TranslatedTeacher(
            model, vocabulary_size(tokenizer), translation, name=name, placement=placement
        )


def placement_here(teacher: Teacher, processes: int) -> Placement:
    """A teacher's placement on this machine: replicated where nothing else is possible.

    That is, without an accelerator for ``offload`` and ``cpu``, and in a single process for ``shard``.
    """
    alone = processes == 1 if teacher.placement == "shard" else current_device().type == "cpu"
    return "replicate" if alone else teacher.placement


def teachers_here(recipe: Recipe, processes: int) -> Iterator[str]:
    """A line for each teacher whose placement or precision this machine decides, for the plan."""
    for teacher in recipe.teachers:
        place = f"teacher {teacher.name}"
        if teacher.recipe is not None:
            yield from teachers_here(teacher.recipe, processes)
        if teacher.is_only_read:
            continue
        if placement_here(teacher, processes) != teacher.placement:
            why = "a single process" if teacher.placement == "shard" else "no accelerator here"
            yield f"{place}: {why}, so its placement is replicate in place of {teacher.placement}"
        if teacher.precision is None and (precision := teacher_precision(teacher)) != device_precision():
            yield f"{place}: {precision} weights, as locked; the default here is {device_precision()}"
        elif teacher.precision is None and precision == "bf16":
            yield f"{place}: bf16 weights, the default on an accelerator"


def teacher_precision(teacher: Teacher, default: Precision | None = None) -> Precision:
    """The precision of a teacher's weights: the recipe's, that of the command's pins, or the default.

    The default is this device's unless another's is given.
    """
    return teacher.precision or current().teacher_precision or default or device_precision()


def device_precision() -> Precision:
    """The default precision of teachers' weights: bf16 on an accelerator, fp32 on a CPU."""
    return "fp32" if current_device().type == "cpu" else "bf16"


def open_precision(recipe: Recipe) -> Precision | None:
    """The precision in this command of the teachers for which a recipe leaves it open; None if of none."""
    own = [] if recipe.adapts_only else [one for one in recipe.teachers if not one.is_only_read]
    inner = (open_precision(one.recipe) for one in recipe.teachers if one.recipe is not None)
    chosen = (teacher_precision(one) for one in own if one.precision is None)
    return next((found for found in chain(chosen, inner) if found is not None), None)


def teacher_place(recipe: Recipe, name: str) -> str:
    """A teacher's place in a recipe, for messages: ``teachers[1] (novels)``."""
    names = [teacher.name for teacher in recipe.teachers]
    return f"teachers[{names.index(name)}] ({name})"


def empty_model(name: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model from its configuration on the meta device, without weights."""
    config = load_config(name, trust_remote_code=trust_remote_code)
    classifies = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())
    with torch.device("meta"):
        build: Any = AutoModelForSequenceClassification if classifies else model_class(declared_task(config))
        model: PreTrainedModel = build.from_config(
            config, trust_remote_code=trust_remote_code, attn_implementation=None
        )
    return model


def model_from_recipe(
    fields: Mapping[str, int | float | str | bool],
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
) -> PreTrainedModel:
    """A randomly initialised model for the recipe's task."""
    context = recipe.data.context
    if recipe.language_task is not None:
        return student_from_fields(fields, tokenizer, task=recipe.language_task, context=context, seed=seed)
    return classifier_from_fields(
        fields, tokenizer, labels=class_names_of(recipe), context=context, seed=seed
    )


def check_model(model: PreTrainedModel, recipe: Recipe, *, teacher: str | None, name: str) -> None:
    """Check that a model processes the recipe's rows correctly and provides the outputs of its objectives.

    ``teacher`` is its name in the recipe, None for the student; ``name`` is the one in messages. Of several
    processes only the main one checks; if it refuses the model, its end ends the others, without a message.

    Raises:
        ModelError: As ``check_forward``, ``check_classifier`` and ``require_paths``.
    """
    if process_rank() > 0:
        return
    check = check_classifier if recipe.language_task is None else check_forward
    check(model, context=recipe.data.context, name=name)
    require_paths(model, paths_into(recipe, teacher), name=name)
