"""Run a language model up to its head, with packed documents kept separate, and access the head.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.lazy import nn, torch
from stlm_kd.models.families import ARCHITECTURES, Task
from stlm_kd.models.partial_forward import call
from stlm_kd.models.positions import first_position

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """The vocabulary projection: weight (V, D) and bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def size(self) -> int:
        """Number of rows, padding entries included."""
        return int(self.weight.shape[0])

    def to(self, dtype: torch.dtype) -> Head:
        """The head in another dtype."""
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def head_of(model: PreTrainedModel) -> Head:
    """The model's own vocabulary projection (not a copy: gradients reach the parameters)."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Linear), "checked when the model is loaded"
    return Head(layer.weight, layer.bias)


def vocabulary_head(model: PreTrainedModel) -> Head | None:
    """As ``head_of``; None for a classifier."""
    return head_of(model) if isinstance(model.get_output_embeddings(), nn.Linear) else None


def task_of(model: PreTrainedModel) -> Task:
    """The task of a language model: causal or masked language modelling."""
    row = ARCHITECTURES.get(model.config.model_type)
    if row is not None:
        return row.task
    return "mlm" if type(model).__name__.endswith("ForMaskedLM") else "clm"


def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states before the head (after the final norm, or BERT's transform), shape (B, T, D)."""
    with bypassed_head(model):
        hidden = call(model, model_inputs(batch, model))["logits"]
    assert isinstance(hidden, torch.Tensor)
    return hidden


def model_inputs(batch: Batch, model: PreTrainedModel) -> dict[str, Tensor]:
    """Keyword arguments of the model for a batch, with packed documents kept separate."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": attention_mask(batch, model),
        "position_ids": batch.position_ids + first_position(model.config),
    }


def inputs_of(batch: AnyBatch, model: PreTrainedModel, *, reader: str = "") -> dict[str, Tensor]:
    """Keyword arguments of a model; examples as encoded for ``reader``, with token types if it has any."""
    if isinstance(batch, Batch):
        return model_inputs(batch, model)
    encoded = batch.reading(reader)
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    if encoded.token_type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = encoded.token_type_ids
    return inputs


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode within the context; restores the previous mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a forward pass, enabled for bf16 only."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def bypassed_head(model: PreTrainedModel) -> Iterator[None]:
    """Replace the model's head by the identity: its ``logits`` are then the head's input.

    The model's own code runs all operations between the last block and the head.
    """
    head: nn.Module = model.get_output_embeddings()
    head.forward = nn.Identity().forward
    try:
        yield
    finally:
        del head.forward


def attention_mask(batch: Batch, model: PreTrainedModel) -> Tensor:
    """Block-diagonal attention mask, (B, 1, T, T): within a document, for causal models lower triangular.

    Padding counts as a document of its own (0), so that no row of the mask is empty. sdpa takes a boolean
    mask, eager attention an additive one.
    """
    documents_BT = batch.document_ids
    length = documents_BT.shape[1]
    allowed_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    if task_of(model) == "clm":
        allowed_BTT &= torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    return _as_attended(allowed_BTT[:, None], model)


def tree_inputs(
    trees: Sequence[tuple[Sequence[int], Sequence[int]]], model: PreTrainedModel
) -> dict[str, Tensor]:
    """Keyword arguments of a causal model for trees of tokens; a token attends to those above it alone.

    Each row has the token ids of a tree and their parents, which come first; that of a root is -1. Rows are
    padded to the longest. Position ids are depths.
    """
    size = max(len(tokens) for tokens, _ in trees)
    ids_BS = torch.zeros(len(trees), size, dtype=torch.int64)
    depths_BS = torch.zeros(len(trees), size, dtype=torch.int64)
    allowed_BSS = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, (tokens, parents) in enumerate(trees):
        ids_BS[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        mask_SS = allowed_BSS[row].numpy()  # shares its memory
        for node, parent in enumerate(parents):
            if parent >= 0:
                mask_SS[node] |= mask_SS[parent]
        depths_BS[row] = allowed_BSS[row].sum(-1) - 1
    return {
        "input_ids": ids_BS,
        "attention_mask": _as_attended(allowed_BSS[:, None], model),
        "position_ids": depths_BS + first_position(model.config),
    }


def _as_attended(allowed: Tensor, model: PreTrainedModel) -> Tensor:
    """A boolean attention mask as the model takes it: additive for eager attention."""
    if model.config._attn_implementation != "eager":
        return allowed
    open_mask = torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device)
    return open_mask.masked_fill(~allowed, torch.finfo(model.dtype).min)
