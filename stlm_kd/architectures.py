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
    """

    blocks: str


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(blocks="h"),
    "llama": Architecture(blocks="layers"),
    "qwen2": Architecture(blocks="layers"),
}
