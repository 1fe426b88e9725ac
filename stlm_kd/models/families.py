"""What each model family is for and where it keeps its parts: one row each.

What transformers answers itself (embeddings, head, base model, configuration aliases) has no column here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["clm", "mlm"]
"""What a language model predicts: the next token, or tokens that were masked."""

Goal = Literal["clm", "mlm", "classification", "regression"]
"""What a model is trained for: the task of a language model, or the class of a text, or a number for it."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family. Paths are below ``model.base_model``.

    Attributes:
        task: What its language models predict.
        blocks: The ModuleList of transformer blocks.
        positions: Where absolute positions are counted from: 0, or the padding id + 1.
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
