"""Models of a recipe's task, language models or classifiers: loaded, built, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import error_context
from stlm_kd.models.capabilities import check_forward, require_paths
from stlm_kd.models.heads.classifiers import check_classifier, classifier_from_fields, load_classifier
from stlm_kd.models.load import declared_task, load_config, load_language_model, model_class, to_device
from stlm_kd.models.students import student_from_fields
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.objective import paths_into
from stlm_kd.recipe import Recipe
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.training import current_device
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
    """A model of the recipe's task, in evaluation mode.

    Args:
        name: Folder or Hub id.
        recipe: Its task and classes.
        tokenizer: What a classifier reads by; its own where None.
        trust_remote_code: Whether it may run code that it brings.
        head_seed: Where it has no head: the seed of a new one. None refuses that.
        dtype: Of its weights.

    Raises:
        MissingResourceError, ModelError: As ``load_language_model`` and ``load_classifier``.
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


def live_teacher(place: str, recipe: Recipe, *, name: str, trust_remote_code: bool) -> LiveTeacher:
    """A teacher on its device, or where it rests.

    Args:
        place: Folder or Hub id.
        recipe: Its task, classes and context; the teacher's precision.
        name: The teacher's.
        trust_remote_code: Whether it may run code that it brings.
    """
    (entry,) = (teacher for teacher in recipe.teachers if teacher.name == name)
    dtype = torch.bfloat16 if entry.precision == "bf16" else torch.float32
    trust = trust_remote_code
    with error_context(teacher_place(recipe, name)):
        tokenizer = load_tokenizer(place, trust_remote_code=trust)
        model = load_model(place, recipe, tokenizer=tokenizer, trust_remote_code=trust, dtype=dtype)
        if not entry.offload:
            to_device(model, current_device())
        check_model(model, recipe, teacher=name, name=place)
    return LiveTeacher(model, vocabulary_size(tokenizer), name=name, offload=entry.offload)


def teacher_place(recipe: Recipe, name: str) -> str:
    """Where a teacher stands in a recipe, as messages say it: ``teachers[1] (novels)``."""
    names = [teacher.name for teacher in recipe.teachers]
    return f"teachers[{names.index(name)}] ({name})"


def empty_model(name: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """A model as its configuration says, without weights: on the meta device."""
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
    """A freshly initialised model of the recipe's task.

    Raises:
        ModelError: As ``student_from_fields`` and ``classifier_from_fields``.
    """
    context = recipe.data.context
    if recipe.language_task is not None:
        return student_from_fields(fields, tokenizer, task=recipe.language_task, context=context, seed=seed)
    return classifier_from_fields(
        fields, tokenizer, labels=class_names_of(recipe), context=context, seed=seed
    )


def check_model(model: PreTrainedModel, recipe: Recipe, *, teacher: str | None, name: str) -> None:
    """Refuse a model that would misread the recipe's rows, or does not give what its objectives look at.

    Args:
        model: As loaded or built.
        recipe: Whose rows it reads.
        teacher: What the recipe calls it; None: the student.
        name: What messages call it.

    Raises:
        ModelError: As ``check_forward``, ``check_classifier`` and ``require_paths``.
    """
    if recipe.language_task is not None:
        check_forward(model, context=recipe.data.context, name=name)
    else:
        check_classifier(model, context=recipe.data.context, name=name)
    require_paths(model, paths_into(recipe, teacher), name=name)
