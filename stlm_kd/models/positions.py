"""First position and maximum document length of a model (P rows of position embeddings, D width).

RoBERTa's first position is its padding id + 1; lower positions are not used for text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from stlm_kd.errors import ModelError
from stlm_kd.models.families import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def first_position(config: PretrainedConfig) -> int:
    """The position id of a document's first token."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None or row.positions == "from-zero":
        return 0
    assert config.pad_token_id is not None, "its positions are counted from it"
    return int(config.pad_token_id) + 1


def num_positions(config: PretrainedConfig) -> int | None:
    """Maximum document length in tokens; None if the configuration does not define it."""
    rows = getattr(config, "max_position_embeddings", None)
    return rows - first_position(config) if isinstance(rows, int) else None


@torch.no_grad()
def count_from_padding(model: PreTrainedModel, padding: int) -> None:
    """Shift the position embeddings of a model that counts positions from its padding id to a new padding id.

    Each text position and padding keep their rows; the table grows or shrinks by the difference. Raises
    ``ModelError`` if the embeddings lack an attribute that depends on the padding id.
    """
    import transformers  # slow import; checking recipes does not need it

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
    weight = nn.Parameter(torch.cat([unused_PD, old_PD[old_padding:]]), requires_grad=old_PD.requires_grad)
    rows = len(weight)
    moved = nn.Embedding(rows, table.embedding_dim, padding_idx=padding, device="meta")
    moved.weight = weight
    numbers = torch.arange(rows, device=weight.device)[None]
    embeddings.add_module("position_embeddings", moved)
    embeddings.register_buffer("position_ids", numbers, persistent=False)
    embeddings.register_buffer("token_type_ids", torch.zeros_like(numbers), persistent=False)
    setattr(embeddings, "padding_idx", padding)  # noqa: B010 (typed as a submodule otherwise)
    model.config.max_position_embeddings = rows
