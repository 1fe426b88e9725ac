"""Check that plain transformers reloads a saved model unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models.forward import task_of, vocabulary_head
from stlm_kd.models.load import quietly
from stlm_kd.notes import note

TEXTS = (
    "The cat sat on the mat, and 42 dogs didn't.",
    "  Two  blanks,\nlines;  naïve café — “quotes” ü\t日本",
)
"""Texts for comparing tokenizers: words, numbers, spaces, newlines, accents and non-Latin letters."""

_TOLERANCE = 1e-4
"""Tolerance of logits, relative to the largest: the weights and kernels are the same."""


def check_reloaded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, *, trust_remote_code: bool
) -> None:
    """Load a folder by the Auto classes and compare token ids and logits with the model in memory.

    The model is in evaluation mode on the CPU, and saved in the folder with its tokenizer. Adds a note if
    ``AutoTokenizer``, which chooses its class by the model's family, deviates from the folder's
    ``tokenizer.json``. Raises ``ModelError`` if token ids or logits differ.
    """
    _check_ids(tokenizer, load_tokenizer(str(folder), trust_remote_code=trust_remote_code))
    plain = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)  # nosec B615  # a folder
    if _ids(plain) != _ids(tokenizer):
        note(
            f"{model.config.model_type}: AutoTokenizer splits text differently from this tokenizer, because "
            "it uses the tokenizer class of the model's family; load the folder by PreTrainedTokenizerFast"
        )
    with quietly(local=True):
        loaded = _auto_class(model).from_pretrained(
            folder, trust_remote_code=trust_remote_code, dtype=torch.float32, use_safetensors=True
        )
    _check_logits(model, loaded.eval(), torch.tensor([_ids(tokenizer)[0][:16]]))


def _auto_class(model: PreTrainedModel) -> Any:  # transformers' Auto classes share no type
    if vocabulary_head(model) is None:
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if task_of(model) == "clm" else AutoModelForMaskedLM


def _ids(tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer(text)["input_ids"]) for text in TEXTS]


def _check_ids(tokenizer: PreTrainedTokenizerFast, loaded: PreTrainedTokenizerFast) -> None:
    before, after = _ids(tokenizer), _ids(loaded)
    for text, own, found in zip(TEXTS, before, after, strict=True):
        if own != found:
            raise ModelError(
                f"its tokenizer gives {len(found)} ids for {text!r} after reloading, {found[:8]} …, expected "
                f"{own[:8]} … as before saving; use a tokenizer that tokenizer.json describes completely"
            )
    if len(tokenizer) != len(loaded):
        raise ModelError(
            f"its tokenizer has {len(loaded)} tokens after reloading, expected {len(tokenizer)} as before "
            "saving; use a tokenizer that tokenizer.json describes completely"
        )


@torch.no_grad()
def _check_logits(model: PreTrainedModel, loaded: PreTrainedModel, ids_BT: Tensor) -> None:
    own, found = (one(input_ids=ids_BT).logits.float() for one in (model, loaded))
    if own.shape == found.shape:
        difference = float((own - found).abs().max())
        if difference <= _TOLERANCE * (1 + float(own.abs().max())):
            return
        what = f"logits that differ by up to {difference:.3g}"
    else:
        what = f"logits of shape {list(found.shape)}, not {list(own.shape)}"
    raise ModelError(
        f"after reloading it gives {what}, expected the same as before saving; some weights are not saved, "
        "or its code loads them differently"
    )
