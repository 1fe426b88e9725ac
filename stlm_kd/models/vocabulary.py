"""Replace a language model's vocabulary in place: embedding, head and special ids.

Shapes: V' new vocabulary, D width.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

from stlm_kd.data.labelled.encoding import padding_id
from stlm_kd.errors import ModelError
from stlm_kd.lazy import nn, torch
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.positions import first_position
from stlm_kd.vocabulary.special_tokens import roles_of
from stlm_kd.vocabulary.token_bytes import vocabulary_size

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerFast
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

_OLD_IDS = (
    "forced_bos_token_id",
    "forced_eos_token_id",
    "decoder_start_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
)
"""Generation-configuration fields with ids of the old vocabulary."""

_OTHER_ROLES = ("sep_token", "cls_token", "mask_token")
"""Further special tokens whose ids some configurations hold."""


def replace_vocabulary(
    model: PreTrainedModel,
    embedding_VD: Tensor,
    head_VD: Tensor | None,
    head_bias_V: Tensor | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Replace the model's embedding and head by new rows, and its special ids by the tokenizer's.

    Weight tying is preserved. The rows are copied. ``config.pad_token_id`` stays empty if the padding token
    is an alias of another token (``own_padding``). Layers between the last block and the head (BERT's
    transform) are unchanged. If positions are counted from the padding id (RoBERTa), their embeddings are
    shifted so that the positions of a text keep theirs.

    ``embedding_VD`` and ``head_VD`` are (V', D); the latter is None if and only if the model is tied.
    ``head_bias_V`` is (V',) if and only if the head has a bias. Raises ``ModelError`` if embedding or head
    are of another kind, or positions are counted from a padding token of its own, which the tokenizer lacks.
    """
    old_embedding, old_head = vocabulary_layers(model)
    size, width = embedding_VD.shape
    tied = is_tied(model)
    assert size == vocabulary_size(tokenizer) and width == old_embedding.embedding_dim, embedding_VD.shape
    assert tied == (head_VD is None), "output rows are only for untied models"
    assert (head_bias_V is None) == (old_head.bias is None), "bias required if and only if the head has one"
    padding = required_padding(model.config.model_type, tokenizer, place=_name_of(tokenizer))
    embedding = _new_embedding(embedding_VD, old_embedding, padding)
    head = nn.Linear(width, size, bias=head_bias_V is not None, device="meta")
    head.weight = embedding.weight if head_VD is None else _parameter(head_VD, old_head.weight)
    if head_bias_V is not None:
        head.bias = _parameter(head_bias_V, old_head.bias)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    _set_other_bias(model, head, tied=tied)
    model.config.tie_word_embeddings = tied
    model.tie_weights()
    _set_size_and_ids(model, tokenizer, size=size, padding=padding)
    assert is_tied(model) == tied, "tying changed"


def replace_embedding(
    model: PreTrainedModel, embedding_VD: Tensor, *, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Replace a classifier's embedding by new rows (V', D), and its special ids by the tokenizer's.

    The rows are copied. Positions that are counted from padding are shifted as in ``replace_vocabulary``; the
    padding token is set as by ``set_padding``. Raises ``ModelError`` as ``replace_vocabulary``.
    """
    assert model.get_output_embeddings() is None, "a language model's head changes with its embedding"
    old = plain_embedding(model)
    size, width = embedding_VD.shape
    assert size == vocabulary_size(tokenizer) and width == old.embedding_dim, embedding_VD.shape
    padding = required_padding(model.config.model_type, tokenizer, place=_name_of(tokenizer))
    model.set_input_embeddings(_new_embedding(embedding_VD, old, padding))
    _set_size_and_ids(model, tokenizer, size=size, padding=padding)
    set_padding(model, tokenizer)


def copy_for_vocabulary(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose vocabulary may be replaced: it shares all other parameters with the model."""
    head = model.get_output_embeddings()
    own = {*plain_embedding(model).parameters(), *(() if head is None else head.parameters())}
    return deepcopy(model, {id(shared): shared for shared in model.parameters() if shared not in own})


def freeze_all_but_embedding(model: PreTrainedModel) -> None:
    """Freeze all parameters except the token embedding."""
    model.requires_grad_(False)
    plain_embedding(model).weight.requires_grad_(True)


def plain_embedding(model: PreTrainedModel) -> nn.Embedding:
    """A model's token embedding; a ``ModelError`` if it is not a plain ``Embedding`` (a scaled one, say)."""
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding:
        raise ModelError(
            f"{model.config.model_type}: its vocabulary cannot be replaced: "
            f"found {type(embedding).__name__}; expected Embedding, as in {', '.join(ARCHITECTURES)}"
        )
    return embedding


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Set a classifier's padding token, from which a decoder determines the last real token.

    If the padding token is an alias of another token, its embedding is still trained, which transformers
    would not do. Raises ``ModelError`` if positions are counted from another padding token, or the tokenizer
    has neither padding nor end token.
    """
    filling = padding_id(tokenizer)
    config = model.config.get_text_config()
    if _counts_from_padding(config.model_type) and filling != config.pad_token_id:
        raise ModelError(
            f"{_name_of(tokenizer)}: its padding token is {filling}, but this {config.model_type} model "
            f"counts positions from {config.pad_token_id}; use the model's own tokenizer"
        )
    config.pad_token_id = filling
    plain_embedding(model).padding_idx = own_padding(tokenizer)


def is_tied(model: PreTrainedModel) -> bool:
    """Whether embedding and head share one parameter."""
    embedding, head = vocabulary_layers(model)
    return head.weight is embedding.weight


def vocabulary_layers(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """The model's embedding and head; ``ModelError`` if one is not plain (scaled, adaptive, missing)."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear:
        raise ModelError(
            f"{model.config.model_type}: its vocabulary cannot be replaced: found {type(embedding).__name__} "
            f"and {type(head).__name__}; expected Embedding and Linear, as in {', '.join(ARCHITECTURES)}"
        )
    return embedding, head


def vocabulary_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Embedding and head: two parameters, one if they are tied, one more if the head has a bias."""
    embedding, head = vocabulary_layers(model)
    return list(dict.fromkeys([*embedding.parameters(), *head.parameters()]))


def freeze_body(model: PreTrainedModel) -> None:
    """Freeze all parameters except the vocabulary's (position embeddings and a head's transform included)."""
    model.requires_grad_(False)
    for parameter in vocabulary_parameters(model):
        parameter.requires_grad_(True)


def thaw_norms(model: PreTrainedModel) -> None:
    """Make the norms trainable; they are identified by class name, as for weight decay."""
    for part in model.modules():
        if "norm" in type(part).__name__.lower():
            part.requires_grad_(True)


def own_padding(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The padding id, or None if the padding token is an alias of another token.

    transformers never trains the embedding of ``config.pad_token_id``, so it must not be an end token.
    """
    return roles_of(tokenizer).padding


def required_padding(model_type: str, tokenizer: PreTrainedTokenizerBase, *, place: str) -> int | None:
    """``own_padding``; raises ``ModelError`` with ``place`` if the family needs it and it is missing."""
    padding = own_padding(tokenizer)
    if padding is None and _counts_from_padding(model_type):
        raise ModelError(
            f"{place}: {model_type} counts positions from its padding token, but the tokenizer has no token "
            "used only for padding; use another tokenizer, or add a pad_token to this one"
        )
    return padding


def _counts_from_padding(model_type: str) -> bool:
    row = ARCHITECTURES.get(model_type)
    return row is not None and row.positions == "after-padding"


def _set_other_bias(model: PreTrainedModel, head: nn.Linear, *, tied: bool) -> None:
    """Set the second reference to the head's bias in BERT and RoBERTa: the same parameter if tied."""
    name = next(name for name, module in model.named_modules() if module is head)
    ties = model._tied_weights_keys
    other = ties.get(f"{name}.bias") if isinstance(ties, dict) else None  # a list in code for transformers 4
    if other is not None:
        owner, _, attribute = other.rpartition(".")
        bias = head.bias if tied else _parameter(head.bias, head.bias)
        setattr(model.get_submodule(owner), attribute, bias)


def _name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or "tokenizer")


def _new_embedding(rows_VD: Tensor, old: nn.Embedding, padding: int | None) -> nn.Embedding:
    size, width = rows_VD.shape
    embedding = nn.Embedding(size, width, padding_idx=padding, device="meta")
    embedding.weight = _parameter(rows_VD, old.weight)
    return embedding


def _parameter(rows: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(rows.detach().to(device=like.device, dtype=like.dtype, copy=True).contiguous())


def _set_size_and_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, size: int, padding: int | None
) -> None:
    model.config.get_text_config().vocab_size = size
    for module in (model, model.base_model):
        if isinstance(getattr(module, "vocab_size", None), int):
            setattr(module, "vocab_size", size)  # noqa: B010 (typed as a submodule otherwise)
    if _counts_from_padding(model.config.model_type) and padding is not None:
        _count_from_padding(model, padding)  # needs the old padding id of the configuration
    _set_special_ids(model, tokenizer)


def _set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    own_pad = own_padding(tokenizer)
    config = model.config.get_text_config()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = bos, eos, own_pad
    for role in _OTHER_ROLES:
        if getattr(config, f"{role}_id", None) is not None:
            setattr(config, f"{role}_id", getattr(tokenizer, f"{role}_id"))
    if getattr(model.base_model, "padding_idx", None) is not None:
        setattr(model.base_model, "padding_idx", own_pad)  # noqa: B010 (typed as a submodule otherwise)
    if model.can_generate():
        generation = model.generation_config
        generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = bos, eos, pad
        for field in _OLD_IDS:
            if getattr(generation, field, None) is not None:
                setattr(generation, field, None)


def _count_from_padding(model: PreTrainedModel, padding: int) -> None:
    """Shift the position embeddings of a model that counts positions from its padding id to a new padding id.

    Each text position and padding keep their rows; the table grows or shrinks by the difference. Raises
    ``ModelError`` if the embeddings lack an attribute that depends on the padding id.
    """
    import transformers

    embeddings = model.base_model.get_submodule("embeddings")
    table = embeddings.get_submodule("position_embeddings")
    assert isinstance(table, nn.Embedding)
    for part in ("position_ids", "token_type_ids", "padding_idx"):
        if not hasattr(embeddings, part):
            raise ModelError(
                f"{model.config.model_type}: with transformers {transformers.__version__} its embeddings "
                f"have no {part}, so its positions cannot be counted from another padding id; install "
                "another release of transformers"
            )
    old_PD, old_padding = table.weight, first_position(model.config) - 1
    if padding == old_padding:
        return
    unused_PD = old_PD.new_zeros(padding, old_PD.shape[1])
    moved_PD = torch.cat([unused_PD, old_PD[old_padding:].detach()])
    weight = nn.Parameter(moved_PD, requires_grad=old_PD.requires_grad)
    rows = len(weight)
    moved = nn.Embedding(rows, table.embedding_dim, padding_idx=padding, device="meta")
    moved.weight = weight
    numbers = torch.arange(rows, device=weight.device)[None]
    embeddings.add_module("position_embeddings", moved)
    embeddings.register_buffer("position_ids", numbers, persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros_like(numbers), persistent=False)
    setattr(embeddings, "padding_idx", padding)  # noqa: B010 (typed as a submodule otherwise)
    model.config.max_position_embeddings = rows
