"""A teacher's distribution over its own tokens, translated to the student's where it is asked for.

Shapes: S nodes of the trees of all rows, B rows, T positions, N tokens, n selected tokens, K covers at most,
D the teacher's width, W its tokens, V the student's, E entries of a table of paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32, compute_dtype
from stlm_kd.vocabulary.paths import PathTable
from stlm_kd.vocabulary.readings import NOWHERE, WHOLE, Covers

if TYPE_CHECKING:
    from stlm_kd.models.forward import Head

FLOOR = 1e-8
"""Share of a uniform distribution, so that no token that the student may meet is impossible."""

_AT_ONCE = 64
"""Tokens that are translated together, which bounds the memory."""


@dataclass(frozen=True, slots=True)
class Paths:
    """A ``PathTable`` on a device: ``starts`` (P + 1,); ``tokens``, ``following`` and ``shares`` (E,)."""

    starts: Tensor
    tokens: Tensor
    following: Tensor
    shares: Tensor

    @classmethod
    def of(cls, table: PathTable, device: torch.device) -> Paths:
        """Copy a table to a device."""
        columns = (table.starts, table.tokens, table.following, table.shares)
        return cls(*(torch.from_numpy(column).to(device) for column in columns))


@dataclass(frozen=True, slots=True)
class Translated:
    """A distribution over the student's tokens at each of its positions.

    Attributes:
        hidden: The teacher's states before its head at all nodes, (S, D).
        head: Its head.
        own: Its tokenizer's size; rows of the head beyond it are padding.
        vocabulary: The student's size.
        paths: How its tokens go on from each path.
        covers: Node, path and token of each cover, (3, B, T, K), or (3, N, K) after tokens are selected;
            those that a position lacks lead ``NOWHERE``.
        device: Of the logits.
    """

    hidden: Tensor
    head: Head
    own: int
    vocabulary: int
    paths: Paths
    covers: Tensor
    device: torch.device

    def rows(self, chosen: Tensor | slice) -> Translated:
        """Select positions by mask or indices, in the caller's compute dtype."""
        compute = compute_dtype(self.head.weight)
        return replace(
            self,
            hidden=self.hidden.to(compute),
            head=self.head.to(compute),
            covers=self.covers[:, self._there(chosen)],
        )

    def logits(self, chosen: Tensor | slice, outcomes: int) -> Tensor:
        """Log-probabilities (n, outcomes) of selected tokens; -inf beyond the student's vocabulary."""
        covers = self.covers[:, self._there(chosen)]
        begins = range(0, covers.shape[1], _AT_ONCE)
        parts = [self._log_probs(covers[:, begin : begin + _AT_ONCE]) for begin in begins]
        nothing = torch.zeros(0, self.vocabulary, device=covers.device)
        log_probs_nV = torch.cat([nothing, *parts]).to(self.device)[:, :outcomes]
        missing = outcomes - log_probs_nV.shape[1]
        return functional.pad(log_probs_nV, (0, missing), value=-torch.inf) if missing else log_probs_nV

    def _log_probs(self, covers: Tensor) -> Tensor:
        nodes_nK, paths_nK, tokens_nK = covers
        nodes_S, place_nK = nodes_nK.unique(return_inverse=True)
        probs_SW = self._own_probs(self.hidden[nodes_S])
        read_nK = probs_SW[place_nK, tokens_nK].double()  # a product of many may be very small
        weights_nK = torch.cat([torch.ones_like(read_nK[:, :1]), read_nK[:, :-1]], dim=1).cumprod(1)
        found_nV = self._whole(probs_SW, place_nK, paths_nK, weights_nK)
        self._add_going_on(found_nV, probs_SW, place_nK, paths_nK, weights_nK)
        found_nV /= found_nV.sum(-1, keepdim=True).clamp_min(torch.finfo(found_nV.dtype).tiny)
        return (found_nV * (1 - FLOOR) + FLOOR / self.vocabulary).log().to(probs_SW.dtype)

    def _own_probs(self, hidden_SD: Tensor) -> Tensor:
        """The teacher's probabilities of its own tokens, (S, W)."""
        bias_W = None if self.head.bias is None else self.head.bias[: self.own]
        logits_SW = functional.linear(hidden_SD, self.head.weight[: self.own], bias_W)
        return at_least_float32(logits_SW).softmax(-1)

    def _whole(self, probs_SW: Tensor, place_nK: Tensor, paths_nK: Tensor, weights_nK: Tensor) -> Tensor:
        """What the states that have read all say of the student's next token, (n, V); 0 where none has."""
        first, last = self.paths.starts[WHOLE : WHOLE + 2].tolist()
        entries = slice(first, last)
        is_whole_nK = paths_nK == WHOLE
        at_n1 = is_whole_nK.int().argmax(1, keepdim=True)
        weight_n1 = (weights_nK * is_whole_nK).gather(1, at_n1)
        mass_nE = probs_SW[place_nK.gather(1, at_n1), self.paths.tokens[entries]]
        mass_nE *= self.paths.shares[entries]
        whole_nV = mass_nE.new_zeros(len(mass_nE), self.vocabulary)
        return whole_nV.index_add_(1, self.paths.following[entries], mass_nE) * weight_n1

    def _add_going_on(
        self, found_nV: Tensor, probs_SW: Tensor, place_nK: Tensor, paths_nK: Tensor, weights_nK: Tensor
    ) -> None:
        """Add what the states say that have read less, of tokens that go on from there."""
        rows, places = ((paths_nK != NOWHERE) & (paths_nK != WHOLE)).nonzero(as_tuple=True)
        paths = paths_nK[rows, places]
        begins, counts = self.paths.starts[paths], self.paths.starts[paths + 1] - self.paths.starts[paths]
        each = torch.arange(len(paths), device=paths.device).repeat_interleave(counts)
        offsets = counts.cumsum(0) - counts
        entries = begins[each] + torch.arange(len(each), device=paths.device) - offsets[each]
        states, weights = place_nK[rows, places][each], weights_nK[rows, places][each]
        mass = probs_SW[states, self.paths.tokens[entries]] * self.paths.shares[entries] * weights
        target = rows[each] * self.vocabulary + self.paths.following[entries]
        found_nV.view(-1).index_add_(0, target, mass)

    def _there(self, chosen: Tensor | slice) -> Tensor | slice:
        return chosen.to(self.covers.device) if isinstance(chosen, Tensor) else chosen


def stacked(covers: Sequence[Sequence[Covers]], nodes: int) -> Tensor:
    """The covers of rows (B, T) with this many nodes each, (3, B, T, K): nodes are counted over all rows."""
    most = max((len(one) for row in covers for one in row), default=0) or 1
    nothing = (0, NOWHERE, 0)
    found = [
        [
            [
                (one.node + nodes * number, one.path, one.token) if one is not None else nothing
                for one in (*here, *[None] * (most - len(here)))
            ]
            for here in row
        ]
        for number, row in enumerate(covers)
    ]
    return torch.tensor(found, dtype=torch.int64).permute(3, 0, 1, 2).contiguous()
