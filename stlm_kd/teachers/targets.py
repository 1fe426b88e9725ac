"""A teacher's distribution at each token: hidden states to project to the vocabulary, logits, or sparse.

Shapes: B rows, T positions, N tokens, n selected tokens, D the teacher's width, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32, compute_dtype
from stlm_kd.losses.sampled import TENSORS, TopKTail
from stlm_kd.teachers.translated_targets import Translated

if TYPE_CHECKING:
    from stlm_kd.models.forward import Head


@dataclass(frozen=True, slots=True)
class Dense:
    """A distribution over the vocabulary at each token, as hidden states before the projection by ``head``.

    ``hidden`` is (B, T, D), or (N, D) after tokens are selected. ``vocabulary`` is the tokenizer's size; rows
    of the head beyond it are padding. ``device``: of the logits, if the head is elsewhere.
    """

    hidden: Tensor
    head: Head
    vocabulary: int
    device: torch.device | None = None

    def rows(self, chosen: Tensor | slice) -> Dense:
        """Select tokens by mask or indices, as (N, D), in the caller's compute dtype."""
        compute = compute_dtype(self.head.weight)
        hidden_ND = self.hidden[self._there(chosen)].to(compute)
        return replace(self, hidden=hidden_ND, head=self.head.to(compute))

    def logits(self, chosen: Tensor | slice, outcomes: int) -> Tensor:
        """Logits (n, outcomes) of selected tokens; -inf beyond the tokenizer's vocabulary."""
        real = min(self.vocabulary, outcomes)
        bias = None if self.head.bias is None else self.head.bias[:real]
        hidden_nD = self.hidden[self._there(chosen)]
        logits_nV = at_least_float32(functional.linear(hidden_nD, self.head.weight[:real], bias))
        return _padded(logits_nV.to(self.device or logits_nV.device), outcomes)

    def _there(self, chosen: Tensor | slice) -> Tensor | slice:
        """The selection on the device of the hidden states, which may be elsewhere than the batch."""
        return chosen.to(self.hidden.device) if isinstance(chosen, Tensor) else chosen


@dataclass(frozen=True, slots=True)
class Logits:
    """A distribution as logits, such as a classifier's: (B, V), (B, T, V), or (N, V) after selection."""

    values: Tensor

    def rows(self, chosen: Tensor | slice) -> Logits:
        """Select rows or tokens by mask, indices or slice."""
        return Logits(self.values[chosen])

    def to(self, device: torch.device) -> Logits:
        """The same logits on a device."""
        return Logits(self.values.to(device, non_blocking=True))

    def logits(self, chosen: Tensor | slice, outcomes: int) -> Tensor:
        """A copy of the logits (n, outcomes) of selected tokens; -inf beyond their own size."""
        return _padded(at_least_float32(self.values[chosen].clone())[:, :outcomes], outcomes)


Whole = Dense | Logits | Translated
"""A distribution of which all logits can be computed."""

Distribution = Whole | TopKTail
"""A teacher's output distribution; ``rows`` selects tokens."""


def joined_sparse(found: Sequence[TopKTail | int], *, like: TopKTail) -> TopKTail:
    """Concatenate sparse targets; a number of tokens in place of a target is filled with zeros.

    For cached teachers, without outputs after an intervention; no term counts these tokens.
    """
    parts: dict[str, Any] = {}
    for name in TENSORS:
        own = getattr(like, name)
        if own is not None:
            zeros = own.new_zeros
            parts[name] = torch.cat(
                [zeros(one, *own.shape[1:]) if isinstance(one, int) else getattr(one, name) for one in found]
            )
    return replace(like, **parts)


def _padded(logits_nV: Tensor, outcomes: int) -> Tensor:
    missing = outcomes - logits_nV.shape[-1]
    if not missing:  # padding by 0 would copy
        return logits_nV
    return functional.pad(logits_nV, (0, missing), value=-torch.inf)
