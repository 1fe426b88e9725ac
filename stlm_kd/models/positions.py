"""First position and maximum document length of a model (P rows of position embeddings, D width).

RoBERTa's first position is its padding id + 1; lower positions are not used for text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.models.families import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PretrainedConfig


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
