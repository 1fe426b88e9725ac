"""Teachers: frozen models that answer a batch with hidden states and the head to project them with.

Shapes: B rows, T positions, N tokens, D the teacher's width, V outcomes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.losses.precision import at_least_float32, compute_dtype
from stlm_kd.models.forward import Head, head_of, last_hidden


@dataclass(frozen=True, slots=True)
class Dense:
    """A distribution over the vocabulary at each token, not yet projected.

    Attributes:
        hidden: (B, T, D), or (N, D) once the tokens that count are chosen.
        head: What projects it.
        vocabulary: The tokenizer's size; rows of the head beyond it are padding and mean nothing.
    """

    hidden: Tensor
    head: Head
    vocabulary: int

    def rows(self, mask_BT: Tensor) -> Dense:
        """The tokens under the mask, as (N, D), in the type that the calling code computes in."""
        compute = compute_dtype(self.head.weight)
        return Dense(self.hidden[mask_BT].to(compute), self.head.to(compute), self.vocabulary)

    def logits(self, chunk: slice, outcomes: int) -> Tensor:
        """Logits (n, outcomes) of a chunk of tokens; -inf for outcomes beyond the tokenizer's vocabulary."""
        real = min(self.vocabulary, outcomes)
        bias = None if self.head.bias is None else self.head.bias[:real]
        logits_nV = at_least_float32(functional.linear(self.hidden[chunk], self.head.weight[:real], bias))
        if real == outcomes:  # padding by nothing would copy
            return logits_nV
        return functional.pad(logits_nV, (0, outcomes - real), value=float("-inf"))


class Teacher(Protocol):
    """Answers a batch. It hangs outside the engine: nothing of it is trained, wrapped or saved."""

    def __call__(self, batch: Batch) -> Dense:
        """Hidden states (B, T, D) of the batch with the head."""
        ...


class LiveTeacher:
    """Runs the model on every batch."""

    def __init__(self, model: PreTrainedModel, vocabulary: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.vocabulary = vocabulary

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Dense:
        """Hidden states (B, T, D) of the batch with the head."""
        if self.model.device != batch.input_ids.device:
            self.model.to(batch.input_ids.device)
        return Dense(last_hidden(self.model, batch), head_of(self.model), self.vocabulary)


class RememberingTeacher:
    """Knows the hidden states of one data set by heart: each row was run once, before the training.

    For data that is read many times and fits in memory: rows × T × D numbers. All rows are run at the start
    and in their own order, so that an answer does not depend on when it is asked, nor on a resume.

    Args:
        teacher: Asked here, in the precision that surrounds this call.
        batches: At least one; each row of the data in exactly one of them.
        rows: How many rows there are; ``example_ids`` are below it.
    """

    def __init__(self, teacher: LiveTeacher, batches: Iterable[Batch], *, rows: int) -> None:
        self._teacher = teacher
        states: Tensor | None = None
        for batch in batches:
            hidden_BTD = teacher(batch).hidden
            if states is None:
                states = hidden_BTD.new_empty(rows, *hidden_BTD.shape[1:])
            states[batch.example_ids] = hidden_BTD
        assert states is not None
        self._states = states

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Dense:
        """Hidden states (B, T, D) of the batch with the head."""
        known = self._states[batch.example_ids.to(self._states.device)].to(batch.input_ids.device)
        return Dense(known, head_of(self._teacher.model), self._teacher.vocabulary)
