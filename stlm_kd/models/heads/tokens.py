"""Models with a new head per token: token classification, or span extraction."""

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
"""Outputs of a span-extraction head: two per token, in any family."""


def load_token_classifier(
    name: str,
    labels: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerFast,
    trust_remote_code: bool,
    head_seed: int,
) -> PreTrainedModel:
    """Load a language model or body with a new head from safetensors, in fp32 and evaluation mode.

    ``labels`` names the head's outputs, ``head_seed`` seeds it; the tokenizer determines the padding token.
    Raises as ``load_classifier``, and ``ModelError`` if transformers has no token classifier of the family.
    """
    name, config = config_to_load(name, trust_remote_code=trust_remote_code)
    if type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{name}: transformers has no token classifier of family {config.model_type}; use another, such "
            "as bert, distilbert, roberta, gpt2 or llama"
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
    missing = sorted(key for key in info["missing_keys"] if key.startswith(body))
    require_all(name, model.config, missing, what="model")
    replaced = sorted(row[0] for row in info["mismatched_keys"] if not row[0].startswith(body))
    check_shapes(name, model.config, info, replaced=replaced)
    set_padding(model, tokenizer)
    model.eval()
    return model
