"""Models with random weights from configurations."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from stlm_kd.models.heads.classifiers import set_labels
from stlm_kd.models.load import model_class
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.context import RecipeSetup


def with_rows(config: PretrainedConfig, rows: int) -> PretrainedConfig:
    """A copy for a vocabulary of so many tokens, without the special tokens that it lacks."""
    config = deepcopy(config)
    text = config.get_text_config()
    text.vocab_size = rows
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(text, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= rows):
            setattr(text, name, None)
    return config


def untrained_model(
    config: PretrainedConfig, setup: RecipeSetup, *, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A model of the recipe's task with random weights, in evaluation mode."""
    kind: Any = AutoModelForSequenceClassification
    if setup.recipe.language_task is not None:
        kind = model_class(setup.recipe.language_task)
    else:
        set_labels(config, class_names_of(setup.recipe))
    model: PreTrainedModel = kind.from_config(
        config, trust_remote_code=setup.context.trust_remote_code, dtype=dtype
    )
    model.eval()
    return model
