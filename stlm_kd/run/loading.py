"""Models of a recipe's task, language models or classifiers: loaded, built, checked."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.classifiers import check_classifier, classifier_from_fields, load_classifier
from stlm_kd.models.forward import check_forward
from stlm_kd.models.load import load_language_model
from stlm_kd.models.students import student_from_fields
from stlm_kd.recipe import Recipe
from stlm_kd.run.examples import class_names_of


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
        EnvironmentFault, ModelError: As ``load_language_model`` and ``load_classifier``.
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


def check_model(model: PreTrainedModel, recipe: Recipe, *, name: str) -> None:
    """Refuse a model that would misread the recipe's rows.

    Raises:
        ModelError: As ``check_forward`` and ``check_classifier``.
    """
    if recipe.language_task is not None:
        check_forward(model, context=recipe.data.context, name=name)
    else:
        check_classifier(model, context=recipe.data.context, name=name)
