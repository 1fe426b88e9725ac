"""What a teacher says at each token: states to project to the vocabulary, logits, or a sparse target.

Shapes: B rows, T positions, N tokens, n tokens chosen of these, D the teacher's width, V outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32, compute_dtype
from stlm_kd.losses.sampled import TopKTail

if TYPE_CHECKING:
    from stlm_kd.models.forward import Head


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

    def rows(self, chosen: Tensor | slice) -> Dense:
        """The tokens under a mask or at indices, as (N, D), in the type that the calling code computes in."""
        compute = compute_dtype(self.head.weight)
        return Dense(self.hidden[chosen].to(compute), self.head.to(compute), self.vocabulary)

    def logits(self, chosen: Tensor | slice, outcomes: int) -> Tensor:
        """Logits (n, outcomes) of some tokens; -inf for outcomes beyond the tokenizer's vocabulary."""
        real = min(self.vocabulary, outcomes)
        bias = None if self.head.bias is None else self.head.bias[:real]
        logits_nV = at_least_float32(functional.linear(self.hidden[chosen], self.head.weight[:real], bias))
        return _padded(logits_nV, outcomes)


@dataclass(frozen=True, slots=True)
class Logits:
    """A distribution that is given as logits, as a classifier's: (B, V), (B, T, V), or (N, V) once chosen."""

    values: Tensor

    def rows(self, chosen: Tensor | slice) -> Logits:
        """The rows or tokens under a mask, at indices, or of a slice."""
        return Logits(self.values[chosen])

    def logits(self, chosen: Tensor | slice, outcomes: int) -> Tensor:
        """Logits (n, outcomes) of some tokens, copied; -inf for outcomes that were not given."""
        return _padded(at_least_float32(self.values[chosen].clone())[:, :outcomes], outcomes)


Distribution = Dense | Logits | TopKTail
"""What a teacher says; ``rows`` chooses among its tokens."""


def joined_sparse(found: Sequence[TopKTail | int], *, like: TopKTail) -> TopKTail:
    """Sparse targets one after the other; where a number of tokens stands in place of one, zeros.

    A cached teacher is not asked after an intervention: there nothing of it is counted.
    """

    def joined(of: Callable[[TopKTail], Tensor]) -> Tensor:
        own = of(like)
        return torch.cat(
            [own.new_zeros(said, *own.shape[1:]) if isinstance(said, int) else of(said) for said in found]
        )

    def labels(said: TopKTail) -> Tensor:
        assert said.label_log_probs is not None
        return said.label_log_probs

    return replace(
        like,
        ids=joined(lambda said: said.ids),
        log_probs=joined(lambda said: said.log_probs),
        tail=joined(lambda said: said.tail),
        entropy=joined(lambda said: said.entropy),
        label_log_probs=None if like.label_log_probs is None else joined(labels),
    )


def _padded(logits_nV: Tensor, outcomes: int) -> Tensor:
    missing = outcomes - logits_nV.shape[-1]
    if not missing:  # padding by nothing would copy
        return logits_nV
    return functional.pad(logits_nV, (0, missing), value=-torch.inf)
