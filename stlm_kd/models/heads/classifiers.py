"""Load, build and check text classification and regression models (from layers: ``models.students``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.generic import ModelOutput

from stlm_kd.data.labelled.batches import ExampleBatch
from stlm_kd.errors import ModelError
from stlm_kd.models.forward import evaluating, inputs_of
from stlm_kd.models.heads.class_names import check_classes
from stlm_kd.models.load import check_shapes, config_to_load, load_weights, require_all
from stlm_kd.models.positions import num_positions
from stlm_kd.models.students import model_from_fields
from stlm_kd.models.vocabulary import set_padding

_MULTIPLE_CLASSES = "multi_label_classification"


def load_classifier(
    name: str,
    labels: Sequence[str] | None,
    *,
    tokenizer: PreTrainedTokenizerFast,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    head_seed: int | None = None,
) -> PreTrainedModel:
    """Load a sequence classification model from safetensors, in evaluation mode, with sdpa attention.

    ``labels`` are class names in order, empty for regression; None accepts the model's own. The tokenizer
    determines the padding token. ``head_seed`` seeds a new head, for a body, a language model, or a head for
    another number of classes; None requires a matching head.

    Raises:
        MissingResourceError: It is neither a folder nor available from the Hub or its cache.
        ModelError: It needs custom code, has no safetensors weights, lacks weights, has no head or one for
            other classes, or has a matching head that a new one would replace.
    """
    assert labels is not None or head_seed is None, "a new head is for given labels"
    name, config = config_to_load(name, trust_remote_code=trust_remote_code)
    _check_family(config, place=name)
    if head_seed is None:
        _check_labels(name, config, labels)
    if labels is not None:
        set_labels(config, labels)
    model, info = load_weights(
        name,
        config,
        AutoModelForSequenceClassification,
        trust_remote_code=trust_remote_code,
        dtype=dtype,
        seed=head_seed,
    )
    replaced = _replaced_head_weights(name, model, info, is_new=head_seed is not None)
    check_shapes(name, model.config, info, replaced=replaced)
    set_padding(model, tokenizer)
    model.eval()
    return model


def _replaced_head_weights(
    name: str, model: PreTrainedModel, info: Mapping[str, Any], *, is_new: bool
) -> list[str]:
    """Newly initialised head weights whose shape differs in the files; rejects a missing or unneeded head."""
    missing = sorted(info["missing_keys"])
    of_head = [key for key in missing if _is_of_head(key, model)]
    require_all(name, model.config, [key for key in missing if key not in of_head], what="model")
    replaced = sorted(row[0] for row in info["mismatched_keys"] if _is_of_head(row[0], model))
    if not is_new:
        if of_head:
            raise ModelError(
                f"{name}: a {model.config.model_type} model without a classification head (missing: "
                f"{of_head[0]}, …); use it as student.model with student.new_head: true; once trained it can "
                "be a teacher or be scored"
            )
        return []
    if not of_head and not replaced:
        raise ModelError(
            f"{name}: it has a head for this number of classes already; use it without a new head"
        )
    return replaced


def _is_of_head(key: str, model: PreTrainedModel) -> bool:
    """Whether a weight belongs to the head; BERT's pooler does, since its language models lack it."""
    return not key.startswith(f"{model.base_model_prefix}.") or ".pooler." in key


def _check_family(config: PretrainedConfig, *, place: str) -> None:
    brought = getattr(config, "auto_map", None) or {}
    if AutoModelForSequenceClassification.__name__ in brought:
        return
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise ModelError(
            f"{place}: transformers has no classifier of family {config.model_type}; use another, such as "
            "bert, distilbert, roberta, gpt2 or llama"
        )


def _check_labels(name: str, config: PretrainedConfig, labels: Sequence[str] | None) -> None:
    """Check a classifier's classes, as ``check_classes``, and that it is not multi-label."""
    if kind_of(config) is None:
        return  # reported with the missing weights
    if config.problem_type == _MULTIPLE_CLASSES:
        raise ModelError(f"{name}: multi-label classification is not supported; use a single-label model")
    if labels is not None:
        check_classes(name, class_names(config), labels)


def kind_of(config: PretrainedConfig) -> Literal["classification", "regression"] | None:
    """A model's task according to its configuration; None for a language model."""
    if not any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ()):
        return None
    return "regression" if config.problem_type == "regression" or config.num_labels == 1 else "classification"


def class_names(config: PretrainedConfig) -> tuple[str, ...]:
    """A classifier's class names in order, by default ``LABEL_0`` and so on."""
    assert config.id2label is not None, "set by transformers by default"
    return tuple(str(label) for _, label in sorted(config.id2label.items()))


@torch.no_grad()
def rename_classes(model: PreTrainedModel, order: Sequence[int], labels: Sequence[str], *, name: str) -> None:
    """Rename and reorder a classifier's classes in place: class ``order[i]`` becomes ``labels[i]``.

    Raises ``ModelError`` if the order changes, but the logits are not those of one linear layer.
    """
    if [*order] != sorted(order):
        text = _random_text(model, 5)
        before = _logits(model, text, 5)
        body = f"{model.base_model_prefix}."
        heads = [
            part
            for place, part in model.named_modules()
            if isinstance(part, nn.Linear) and part.out_features == len(order) and not place.startswith(body)
        ]
        for head in heads:
            for rows in (head.weight, head.bias):
                if rows is not None:
                    rows.copy_(rows[[*order]])
        if not torch.allclose(_logits(model, text, 5), before[:, [*order]], rtol=1e-4, atol=1e-5):
            raise ModelError(
                f"{name}: the classes of this {model.config.model_type} model cannot be put in another "
                "order; give data.labels in the model's order"
            )
    set_labels(model.config, labels)


def set_labels(config: PretrainedConfig, labels: Sequence[str]) -> None:
    """Set the classes in a classifier's configuration; none means regression."""
    id2label = _id2label(labels)
    config.id2label = id2label
    config.label2id = {label: place for place, label in id2label.items()}
    config.problem_type = "single_label_classification" if labels else "regression"


def _id2label(labels: Sequence[str]) -> dict[int, str]:
    return dict(enumerate(labels or ("LABEL_0",)))


def classifier_from_fields(
    fields: Mapping[str, int | float | str | bool],
    tokenizer: PreTrainedTokenizerFast,
    *,
    labels: Sequence[str],
    context: int,
    seed: int,
) -> PreTrainedModel:
    """A freshly initialised classifier over the tokenizer's vocabulary; no ``labels`` means regression.

    Other arguments are as in ``student_from_fields``. Raises ``ModelError`` as there, or if the family has no
    classifier.
    """
    model = model_from_fields(
        fields,
        tokenizer,
        kind=AutoModelForSequenceClassification,
        context=context,
        seed=seed,
        id2label=_id2label(labels),
    )
    set_labels(model.config, labels)
    set_padding(model, tokenizer)
    return model


@torch.no_grad()
def check_classifier(model: PreTrainedModel, *, context: int, name: str) -> None:
    """Raise ``ModelError`` if a classifier cannot read ``context`` tokens or padding changes its logits."""
    longest = num_positions(model.config)
    if longest is not None and longest < context:
        raise ModelError(
            f"{name}: it reads at most {longest} tokens, but data.context is {context}; "
            "give a shorter context"
        )
    ids_1T = _random_text(model, context // 2)
    filling_1T = torch.full((1, context - context // 2), model.config.get_text_config().pad_token_id)
    padded_1T = torch.cat([ids_1T, filling_1T.to(ids_1T.device)], 1)
    with evaluating(model):
        alone, padded = (_logits(model, row, context // 2) for row in (ids_1T, padded_1T))
    if alone.shape != (1, model.config.num_labels):
        raise ModelError(
            f"{name}: its logits for a text have shape {list(alone.shape[1:])}, but it has "
            f"{model.config.num_labels} labels; use a model for single labels of whole texts"
        )
    scale = float(torch.nan_to_num(alone).abs().max())
    if not torch.allclose(padded, alone, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
        raise ModelError(
            f"{name}: this {model.config.model_type} classifier gives different logits for a text when its "
            "row is padded; use another model"
        )


def head_place(model: PreTrainedModel) -> Literal["first", "last", "several"]:
    """Token that a classifier's head reads, by its gradient: the first in encoders, the last in decoders."""
    kept: list[Tensor] = []

    def keep(_body: nn.Module, _args: object, output: ModelOutput) -> None:
        kept.append(output["last_hidden_state"])

    with evaluating(model), torch.enable_grad(), model.base_model.register_forward_hook(keep):
        logits = _logits(model, _random_text(model, 5), 5)
        (slope_1TD,) = torch.autograd.grad(logits.sum(), kept)
    read = slope_1TD[0].abs().sum(1).nonzero().squeeze(1).tolist()
    return "first" if read == [0] else "last" if read == [4] else "several"


def _random_text(model: PreTrainedModel, length: int) -> Tensor:
    """One row of random tokens without padding, with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    config = model.config.get_text_config()
    ids_1T = torch.randint(0, config.vocab_size - 1, (1, length), generator=generator)
    not_padding_1T: Tensor = ids_1T + (ids_1T >= config.pad_token_id)
    return not_padding_1T.to(model.device)


def _logits(model: PreTrainedModel, ids_1T: Tensor, length: int) -> Tensor:
    """The logits of one text with the given number of tokens, (1, C)."""
    mask = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None] < length
    nothing = torch.zeros(1, dtype=torch.int64, device=ids_1T.device)
    batch = ExampleBatch(ids_1T, mask, None, labels=nothing, example_ids=nothing)
    logits = model(**inputs_of(batch, model)).logits
    assert isinstance(logits, Tensor)
    return logits.float()
