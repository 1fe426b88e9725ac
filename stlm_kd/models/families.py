"""Supported model families: task and module paths, one entry each.

Properties that transformers provides (embeddings, head, base model, configuration aliases) are omitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["clm", "mlm"]
"""Task of a language model: causal (next-token) or masked language modelling."""

Goal = Literal["clm", "mlm", "classification", "regression"]
"""Training goal: a language-modelling task, text classification, or regression."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model family. Paths are relative to ``model.base_model``.

    Attributes:
        task: Task of its language models.
        blocks: Path of the ModuleList of transformer blocks.
        positions: First absolute position: 0, or the padding id + 1.
    """

    task: Task
    blocks: str
    positions: Literal["from-zero", "after-padding"] = "from-zero"


_DECODER = Architecture("clm", blocks="layers")
_ENCODER = Architecture("mlm", blocks="encoder.layer")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("clm", blocks="h"),
    "llama": _DECODER,
    "mobillama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "phi3": _DECODER,
    "bert": _ENCODER,
    "distilbert": Architecture("mlm", blocks="transformer.layer"),
    "roberta": Architecture("mlm", blocks="encoder.layer", positions="after-padding"),
}
