"""Run a language model up to the state that meets its head, documents kept apart, and find that head.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stlm_kd.architectures import ARCHITECTURES, Task
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.examples import AnyBatch
from stlm_kd.errors import ModelError
from stlm_kd.models.positions import first_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """The vocabulary projection: weight (V, D) and bias (V,) or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def size(self) -> int:
        """Number of outcomes, padded entries included."""
        return int(self.weight.shape[0])

    def to(self, dtype: torch.dtype) -> Head:
        """The same head in a type; itself where it has that already."""
        return Head(self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype))


def head_of(model: PreTrainedModel) -> Head:
    """The model's own vocabulary projection (not a copy: gradients reach the parameters)."""
    layer = model.get_output_embeddings()
    assert isinstance(layer, nn.Linear), "checked when the model is loaded"
    return Head(layer.weight, layer.bias)


def vocabulary_head(model: PreTrainedModel) -> Head | None:
    """As ``head_of``; None of a model that predicts no tokens, a classifier."""
    return head_of(model) if isinstance(model.get_output_embeddings(), nn.Linear) else None


def task_of(model: PreTrainedModel) -> Task:
    """What a language model predicts: the next token, looking back, or masked tokens, looking both ways."""
    row = ARCHITECTURES.get(model.config.model_type)
    if row is not None:
        return row.task
    return "mlm" if type(model).__name__.endswith("ForMaskedLM") else "clm"


def last_hidden(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The state that meets the head (after the final norm, or BERT's transform), shape (B, T, D)."""
    given = {} if task_of(model) == "mlm" else {"use_cache": False}
    with bypassed_head(model):
        output = model(**model_inputs(batch, model), **given)
    hidden = output.logits
    assert isinstance(hidden, Tensor)
    return hidden


def model_inputs(batch: Batch, model: PreTrainedModel) -> dict[str, Tensor]:
    """What to call the model with for a batch, by name, so that its documents are kept apart."""
    return {
        "input_ids": batch.input_ids,
        "attention_mask": attention_mask(batch, model),
        "position_ids": position_ids(batch, model),
    }


def inputs_of(batch: AnyBatch, model: PreTrainedModel, *, reader: str = "") -> dict[str, Tensor]:
    """What to call a model with, by name: ``model_inputs``, or examples as the reader's tokenizer reads them.

    Token types are left out where the model knows none.
    """
    if isinstance(batch, Batch):
        return model_inputs(batch, model)
    encoded = batch.reading(reader)
    inputs = {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask}
    if encoded.token_type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = encoded.token_type_ids
    return inputs


@contextmanager
def bypassed_head(model: PreTrainedModel) -> Iterator[None]:
    """While it is entered, the model's head is the identity: its ``logits`` are what the head would meet.

    So the model's own code runs whatever its family does between the last block and the head.
    """
    head: nn.Module = model.get_output_embeddings()
    head.forward = _identity
    try:
        yield
    finally:
        del head.forward


def _identity(hidden: Tensor) -> Tensor:
    return hidden


def position_ids(batch: Batch, model: PreTrainedModel) -> Tensor:
    """The batch's positions as the model's family counts them, (B, T)."""
    return batch.position_ids + first_position(model.config)


def attention_mask(batch: Batch, model: PreTrainedModel) -> Tensor:
    """Who may look at whom, (B, 1, T, T): the same document, for a causal model its earlier positions.

    Padding counts as a document of its own (0), so that no row of the mask is empty. sdpa takes booleans,
    eager attention numbers to add.
    """
    documents_BT = batch.document_ids
    length = documents_BT.shape[1]
    allowed_BTT = documents_BT[:, :, None] == documents_BT[:, None, :]
    if task_of(model) == "clm":
        allowed_BTT &= torch.ones(length, length, dtype=torch.bool, device=documents_BT.device).tril()
    allowed = allowed_BTT[:, None]
    if model.config._attn_implementation != "eager":
        return allowed
    forbidden = torch.finfo(model.dtype).min
    return torch.zeros(allowed.shape, dtype=model.dtype, device=allowed.device).masked_fill(
        ~allowed, forbidden
    )


@torch.no_grad()
def check_forward(model: PreTrainedModel, *, context: int, name: str) -> None:
    """Refuse a model that says something else when it is run up to its head than when it is run whole.

    Such are models that cap their logits, causal ones that look both ways or look back less far than
    ``context`` (a sliding window), and models that carry a state over to the next document.

    Args:
        model: As loaded or built.
        context: Positions of a row of the data.
        name: What messages call it.

    Raises:
        ModelError: It is one of these.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ModelError(
            f"{name}: this {model.config.model_type} model has no embedding of tokens with a linear head "
            f"({type(embedding).__name__}, {type(head).__name__} found); use another model"
        )
    was_training = model.training
    model.eval()
    try:
        row = _random_row(model, [context])
        whole = model(input_ids=row.input_ids).logits
        try:
            parts = nn.functional.linear(last_hidden(model, row), head.weight, head.bias)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"{name}: this {model.config.model_type} model cannot be told which positions see each other "
                f"({error}); use a model with attention alone"
            ) from error
        if not _close(parts, whole, tolerance=1e-3):
            raise ModelError(
                f"{name}: this {model.config.model_type} model's logits are not its head applied to its last "
                f"hidden state over {context} tokens (it may cap them, look both ways, or have a sliding "
                "window below data.context); use another model or a shorter context"
            )
        two = _random_row(model, [context // 2, context - context // 2])
        other_ids = two.input_ids.clone()
        other_ids[:, : context // 2] = other_ids[:, : context // 2].flip(1)
        other = replace(two, input_ids=other_ids)
        second = slice(context // 2, context)
        before, after = last_hidden(model, two)[:, second], last_hidden(model, other)[:, second]
        if not _close(before, after, tolerance=1e-4):
            raise ModelError(
                f"{name}: in this {model.config.model_type} model a document sees the one before it in its "
                "row; only models with attention alone keep packed documents apart"
            )
    finally:
        model.train(was_training)


def _close(found: Tensor, expected: Tensor, *, tolerance: float) -> bool:
    """Equal up to a share of the largest value; weights that are not finite are for training to report."""
    found, expected = (torch.nan_to_num(values.float(), 0.0, 0.0, 0.0) for values in (found, expected))
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def _random_row(model: PreTrainedModel, lengths: Sequence[int]) -> Batch:
    """One row of random documents, always the same."""
    generator = torch.Generator().manual_seed(0)
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding), "checked when the model is loaded"
    ids_1T = torch.randint(0, embedding.num_embeddings, (1, sum(lengths)), generator=generator)
    padding = model.config.get_text_config().pad_token_id
    if padding is not None:  # from which RoBERTa tells positions, where it is not given them
        ids_1T[ids_1T == padding] = (padding + 1) % embedding.num_embeddings
    documents = torch.cat([torch.full((n,), number) for number, n in enumerate(lengths, start=1)])
    positions = torch.cat([torch.arange(n) for n in lengths])
    return Batch(
        input_ids=ids_1T,
        attention_mask=torch.ones_like(ids_1T, dtype=torch.bool),
        labels=torch.full_like(ids_1T, IGNORED),
        document_ids=documents[None],
        position_ids=positions[None],
        example_ids=torch.zeros(1, dtype=torch.int64),
    ).to(model.device)
