"""Supported model families: task and module paths, one entry each.

Properties that transformers provides (embeddings, head, base model, configuration aliases) are omitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stlm_kd.errors import ExtensionError

Task = Literal["clm", "mlm"]
"""Task of a language model: causal (next-token) or masked language modelling."""

Goal = Literal["clm", "mlm", "classification", "regression"]
"""Training goal: a language-modelling task, text classification, or regression."""


Positions = Literal["from-zero", "after-padding"]


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model family. Paths are relative to ``model.base_model``.

    Attributes:
        task: Task of its language models.
        blocks: Path of the ModuleList of transformer blocks.
        positions: First absolute position: 0, or the padding id + 1.
        body: Path of the module whose output has ``last_hidden_state``, if a head does not call the base
            model.
    """

    task: Task
    blocks: str
    positions: Positions = "from-zero"
    body: str = ""


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
    "gpt_neox": _DECODER,
    "olmo2": _DECODER,
    "opt": Architecture("clm", blocks="decoder.layers", body="decoder"),
    "bert": _ENCODER,
    "distilbert": Architecture("mlm", blocks="transformer.layer"),
    "roberta": Architecture("mlm", blocks="encoder.layer", positions="after-padding"),
}
"""The families by transformers' ``model_type``; ``register_family`` adds one."""


def register_family(
    name: str, *, task: Task, blocks: str, positions: Positions = "from-zero", body: str = ""
) -> None:
    """Add a model family, whose hidden states and attention maps can then be compared and exchanged.

    Its models are students, teachers and adapted teachers like those of a built-in family. What does not work
    with the installed transformers is found when a model is loaded: ``models.capabilities`` compares the
    model run in parts with the whole model, and refuses it by name. A family whose positions begin after the
    padding id must have RoBERTa's embeddings.

    Args:
        name: transformers' ``model_type``.
        task: Task of its language models: ``clm`` (causal) or ``mlm`` (masked).
        blocks: Path from ``model.base_model`` to the ModuleList of its transformer blocks, such as
            ``layers``.
        positions: Whether a document's first position id is 0, or the padding id + 1.
        body: As in ``Architecture``.

    Raises:
        ExtensionError: The family is there already, or an argument has no such value.

    >>> register_family("stablelm", task="clm", blocks="layers")
    >>> ARCHITECTURES["stablelm"].task
    'clm'
    """
    if name in ARCHITECTURES:
        raise ExtensionError(f"model family {name}: registered already; remove one of the two")
    for key, value, choices in (
        ("task", task, get_args(Task)),
        ("positions", positions, get_args(Positions)),
    ):
        if value not in choices:
            raise ExtensionError(
                f"model family {name}: {key} {value!r} found; expected {' or '.join(choices)}"
            )
    ARCHITECTURES[name] = Architecture(task, blocks, positions, body)
