"""Models with a fresh head on every token: a class for each word, or where a span begins and ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.errors import ModelError
from stlm_kd.models.heads.classifiers import set_labels
from stlm_kd.models.load import check_shapes, config_to_load, load_weights, require_all
from stlm_kd.models.vocabulary import set_padding

SPAN = ("start", "end")
"""The outputs of a head that finds spans: a head of these two on every token, in any family."""


def load_token_classifier(
    name: str,
    labels: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerFast,
    trust_remote_code: bool,
    head_seed: int,
) -> PreTrainedModel:
    """A model in evaluation mode with a fresh head, from safetensors only, fp32.

    Args:
        name: Folder or Hub id of a language model or body.
        labels: The names of the head's outputs.
        tokenizer: Says what fills rows.
        trust_remote_code: Whether it may run code that it brings.
        head_seed: By which the head is drawn.

    Raises:
        MissingResourceError: As ``stlm_kd.models.heads.classifiers.load_classifier``.
        ModelError: Likewise, or a family of which transformers has no such model.
    """
    name, config = config_to_load(name, trust_remote_code=trust_remote_code)
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{name}: transformers has no model of family {config.model_type} that tells the classes of "
            "words; use another, such as bert, distilbert, roberta, gpt2 or llama"
        )
    set_labels(config, labels)
    model, info = load_weights(
        name,
        config,
        AutoModelForTokenClassification,
        trust_remote_code=trust_remote_code,
        dtype=torch.float32,
        seed=head_seed,
    )
    body = f"{model.base_model_prefix}."
    require_all(
        name, model.config, sorted(key for key in info["missing_keys"] if key.startswith(body)), what="model"
    )
    replaced = sorted(row[0] for row in info["mismatched_keys"] if not row[0].startswith(body))
    check_shapes(name, model.config, info, replaced=replaced)
    set_padding(model, tokenizer)
    model.eval()
    return model
