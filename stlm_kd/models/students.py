"""Build a student from configuration fields, or from a subset of a teacher's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from stlm_kd.errors import ModelError, did_you_mean, foreign_errors, one_line
from stlm_kd.models.architectures.distilbert import copy_bert, distilbert_config
from stlm_kd.models.checkpoints.boundary import check_layers, reason
from stlm_kd.models.families import ARCHITECTURES, Task
from stlm_kd.models.load import Kind, check_task, count_parameters, model_class
from stlm_kd.models.positions import first_position
from stlm_kd.models.vocabulary import required_padding
from stlm_kd.vocabulary.token_bytes import vocabulary_size

LARGEST_STUDENT = 150_000_000
"""Maximum number of a student's parameters."""

LayerChoice = Literal["every-other", "first", "last", "spread"] | Sequence[int]


def student_from_fields(
    fields: Mapping[str, int | float | str | bool],
    tokenizer: PreTrainedTokenizerBase,
    *,
    task: Task,
    context: int,
    seed: int,
) -> PreTrainedModel:
    """A newly initialised language model over the tokenizer's vocabulary, with ``context`` positions or more.

    ``fields`` are ``model_type`` and fields of its configuration (a preset or a recipe's ``architecture``).
    Raises ``ModelError`` for an unknown type or field, a type of another task, an invalid configuration, or
    too many parameters.
    """
    check_task(_configuration(fields), task, place="student.architecture")
    return model_from_fields(fields, tokenizer, kind=model_class(task), context=context, seed=seed)


def model_from_fields(
    fields: Mapping[str, int | float | str | bool],
    tokenizer: PreTrainedTokenizerBase,
    *,
    kind: Kind,
    context: int,
    seed: int,
    id2label: Mapping[int, str] | None = None,
) -> PreTrainedModel:
    """As ``student_from_fields``, for any kind of model; ``id2label`` names the classes of a classifier."""
    known = _configuration(fields)
    model_type = known.model_type
    given = {name: value for name, value in fields.items() if name != "model_type"}
    names = set(known.to_dict()) | set(known.attribute_map)
    for field in given:
        if field not in names:
            raise ModelError(
                f"student.architecture.{one_line(field)}: not a field of {model_type}"
                f"{did_you_mean(field, names)}"
            )
    given = _by_own_names(given, known)
    padding = required_padding(model_type, tokenizer, place="student.architecture")
    positions = known.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    known.pad_token_id = padding
    needed = context + first_position(known)

    def as_ours(error: BaseException) -> ModelError:
        why = reason(error)
        if "scaled_dot_product_attention" in why:
            why = "transformers has no sdpa attention for this family; use another family"
        return ModelError(f"student.architecture: {model_type} cannot be built from it: {why}")

    with foreign_errors(as_ours, is_quiet=True):
        given[positions] = max(int(given.get(positions, 0)), needed)
        config = AutoConfig.for_model(
            model_type,
            **given,
            vocab_size=vocabulary_size(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=padding,
            **({} if id2label is None else {"id2label": dict(id2label)}),
        )
        _check_heads(config)
        check_layers(config, place="student.architecture")
        build: Any = kind  # whose method transformers leaves without types
        return _built(build.from_config, config, seed=seed)


def _configuration(fields: Mapping[str, int | float | str | bool]) -> PretrainedConfig:
    """The default configuration of the fields' model type."""
    model_type = str(fields.get("model_type", ""))
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"student.architecture.model_type: {one_line(model_type) or 'nothing'} given"
            f"{did_you_mean(model_type, ARCHITECTURES)}; expected a model type of transformers"
        )
    known = AutoConfig.for_model(model_type)
    assert isinstance(known, PretrainedConfig)
    return known


def _check_heads(config: PretrainedConfig) -> None:
    """Check the numbers of heads, which transformers does not check before the model runs."""
    names = ("num_attention_heads", "num_key_value_heads")
    heads, groups = (getattr(config, name, None) for name in names)
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups != 0:
        raise ValueError(f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({groups})")


def _by_own_names(
    fields: Mapping[str, int | float | str | bool], known: PretrainedConfig
) -> dict[str, int | float | str | bool]:
    """Rename the fields to the family's own names, such as ``n_layer`` for ``num_hidden_layers``."""
    found: dict[str, int | float | str | bool] = {}
    for field, value in fields.items():
        name = known.attribute_map.get(field, field)
        if name in found:
            raise ModelError(
                f"student.architecture.{field}: given twice, also by another name; use {name} alone"
            )
        found[name] = value
    return found


def _built(build: Callable[..., object], config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A randomly initialised fp32 model; its size is checked before allocation."""
    settings = {"attn_implementation": "sdpa", "dtype": torch.float32}
    with torch.device("meta"):
        empty = build(config, **settings)
    assert isinstance(empty, PreTrainedModel)
    check_size(empty)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config, **settings)
    assert isinstance(model, PreTrainedModel)
    return model


def student_from_layers(
    teacher: PreTrainedModel, layers: LayerChoice, *, place: str, model_type: str | None = None
) -> PreTrainedModel:
    """A copy of the teacher with only the chosen blocks, in ascending order; all other parts are copied.

    ``layers`` are ``every-other`` (0, 2, 4, …), ``first`` and ``last`` (half of them), ``spread`` (half of
    them, evenly, both ends included), or 0-based indices. ``model_type`` is the student's family: by default
    the teacher's; distilbert for a bert. Raises ``ModelError``, which begins with ``place``, if the family is
    not in ``ARCHITECTURES`` or cannot be converted, a layer does not exist, or too many parameters remain.
    """
    own = str(teacher.config.model_type)
    if own not in ARCHITECTURES:
        raise ModelError(f"{place}: layers of {own} are not supported; supported: {', '.join(ARCHITECTURES)}")
    check_family(own, model_type or own, place=place)
    chosen = choose_layers(teacher.config.num_hidden_layers, layers, place=place)
    if model_type in (None, own):
        return _of_some_blocks(teacher, chosen)
    assert isinstance(teacher, (BertForMaskedLM, BertForSequenceClassification)), "loaded as one of them"
    kind = (
        DistilBertForMaskedLM if isinstance(teacher, BertForMaskedLM) else DistilBertForSequenceClassification
    )
    student = _built(kind._from_config, distilbert_config(teacher.config, len(chosen))).eval()
    assert isinstance(student, (DistilBertForMaskedLM, DistilBertForSequenceClassification))
    copy_bert(student, teacher, chosen)
    return student


def check_family(own: str, wanted: str, *, place: str) -> None:
    """Raise ``ModelError``, with the possible families, if layers of ``own`` make no ``wanted`` student."""
    possible = (own, "distilbert") if own == "bert" else (own,)
    if wanted not in possible:
        raise ModelError(
            f"{place}: a {wanted} student cannot be made of the layers of a {own} teacher; "
            f"possible: {', '.join(possible)}"
        )


def _of_some_blocks(teacher: PreTrainedModel, chosen: Sequence[int]) -> PreTrainedModel:
    """Copy the teacher with only these blocks, in fp32."""
    config = type(teacher.config).from_dict(teacher.config.to_dict())
    config.num_hidden_layers = len(chosen)
    layer_types = getattr(teacher.config, "layer_types", None)
    if layer_types is not None:
        config.layer_types = [layer_types[i] for i in chosen]
    student = _built(type(teacher)._from_config, config)
    student.eval()
    student.get_input_embeddings().padding_idx = teacher.get_input_embeddings().padding_idx
    prefix = f"{teacher.base_model_prefix}.{ARCHITECTURES[config.model_type].blocks}."
    source = teacher.state_dict()
    with torch.no_grad():
        for name, value in student.state_dict().items():
            value.copy_(source[_source_name(name, prefix, chosen)])
    return student


def choose_layers(num_layers: int, layers: LayerChoice, *, place: str) -> list[int]:
    """The 0-based teacher layers that a choice names, ascending.

    >>> choose_layers(12, "every-other", place="")
    [0, 2, 4, 6, 8, 10]
    >>> choose_layers(12, "spread", place="")
    [0, 2, 4, 7, 9, 11]
    >>> choose_layers(5, "last", place="")
    [3, 4]
    """
    half = max(1, num_layers // 2)
    if layers == "every-other":
        return list(range(0, num_layers, 2))
    if layers == "first":
        return list(range(half))
    if layers == "last":
        return list(range(num_layers - half, num_layers))
    if layers == "spread":
        return [round(i * (num_layers - 1) / (half - 1)) if half > 1 else 0 for i in range(half)]
    assert not isinstance(layers, str)
    if not layers or any(not 0 <= i < num_layers for i in layers) or sorted(set(layers)) != list(layers):
        raise ModelError(
            f"{place}: {list(layers)} given, but the teacher has {num_layers} layers; "
            f"use different indices 0 to {num_layers - 1} in ascending order"
        )
    return list(layers)


def check_size(model: PreTrainedModel) -> None:
    """Raise ``ModelError`` for a student of more than ``LARGEST_STUDENT`` parameters."""
    size = count_parameters(model)
    if size > LARGEST_STUDENT:
        raise ModelError(
            f"student: {size:,} parameters; a student has at most {LARGEST_STUDENT:,}. "
            "Choose fewer layers, a smaller width or a smaller vocabulary"
        )


def _source_name(name: str, prefix: str, chosen: Sequence[int]) -> str:
    """The teacher's name of a student's tensor: only the block index differs."""
    if not name.startswith(prefix):
        return name
    index, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{chosen[int(index)]}.{rest}"
