"""Where each model family keeps its parts: one row each.

A family needs a row when a student is initialised from its layers. What transformers answers itself
(embeddings, head, base model, configuration aliases) has no column here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Architecture:
    """Paths below ``model.base_model``.

    Attributes:
        blocks: The ModuleList of transformer blocks.
        final_norm: The norm after the last block.
    """

    blocks: str
    final_norm: str


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(blocks="h", final_norm="ln_f"),
    "llama": Architecture(blocks="layers", final_norm="norm"),
    "qwen2": Architecture(blocks="layers", final_norm="norm"),
}
