"""Losses over a vocabulary without a vocabulary-sized tensor for every token.

The projection to the vocabulary, the losses on it and their gradient are computed for one chunk of tokens
after the other, all during the forward pass, so that never more than one chunk of logits is alive.

Shapes: N tokens, n tokens of one chunk, D width, V outcomes, K losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32, compute_dtype

CHUNK_ELEMENTS = 2**21
"""Logits alive at once: 8 MiB in float32, which stays near a processor's caches."""

ACCELERATOR_CHUNK_ELEMENTS = 2**25
"""The same where kernels are wide: 128 MiB in float32. A chunk must have hundreds of tokens there, or adding
to the head's gradient, which every chunk reads and writes whole, takes longer than the matrix products."""

LossSums = Callable[[Tensor, slice], Sequence[Tensor]]
"""Student logits (n, V) of a chunk, and which tokens these are → K sums over the chunk's tokens."""


def chunked_losses(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, loss_sums: LossSums, scales: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Σ scales · sums, a scalar with its gradient; and the K sums themselves, detached, in float64.

    Args:
        hidden_ND: States to project, (N, D).
        weight_VD: The head's weight.
        bias_V: The head's bias.
        loss_sums: Called once for each chunk, under autograd; must be made of sums over tokens.
        scales: K factors. A loss of factor 0 is measured only.
    """
    return _ChunkedLosses.apply(hidden_ND, weight_VD, bias_V, loss_sums, scales)  # type: ignore[no-any-return, no-untyped-call]


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        loss_sums: LossSums,
        scales: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        compute = compute_dtype(weight_VD)
        projection = _Projection(hidden_ND.to(compute), weight_VD.to(compute), bias_V, ctx.needs_input_grad)
        sums = torch.zeros(len(scales), dtype=torch.float64, device=hidden_ND.device)
        chunk_rows = _chunk_rows(weight_VD)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, hidden_ND.shape[0], chunk_rows):
                projection.add(slice(start, start + chunk_rows), loss_sums, scales, sums)
        ctx.grads = projection.gradients(hidden_ND.dtype, weight_VD.dtype)
        ctx.mark_non_differentiable(sums)
        total = (sums * torch.tensor(scales, dtype=torch.float64, device=sums.device)).sum()
        return total.to(torch.promote_types(weight_VD.dtype, torch.float32)), sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the gradients below are numbers without a graph of their own
            raise RuntimeError("create_graph: the gradient of chunked losses cannot be differentiated again")
        grads, ctx.grads = ctx.grads, None  # scaled in place below: a second backward must fail, not lie
        return (*(None if g is None else g.mul_(grad_total.to(g.dtype)) for g in grads), None, None)


class _Projection:
    """The head applied to chunks of states, and the gradients summed so far in float32 or better."""

    def __init__(
        self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: Sequence[bool]
    ) -> None:
        self.hidden_ND, self.weight_VD = hidden_ND, weight_VD
        self.bias_V = None if bias_V is None else bias_V.to(weight_VD.dtype)
        exact = torch.promote_types(weight_VD.dtype, torch.float32)
        self.grad_ND, self.grad_VD, self.grad_V = (
            tensor.new_zeros(tensor.shape, dtype=exact) if tensor is not None and want else None
            for tensor, want in zip((hidden_ND, weight_VD, bias_V), wanted[:3], strict=True)
        )

    def add(self, chunk: slice, loss_sums: LossSums, scales: Sequence[float], sums: Tensor) -> None:
        """Add a chunk's losses to ``sums`` and their weighted gradient to the gradients."""
        logits_nV = at_least_float32(functional.linear(self.hidden_ND[chunk], self.weight_VD, self.bias_V))
        wanted = any(grad is not None for grad in (self.grad_ND, self.grad_VD, self.grad_V))
        with torch.set_grad_enabled(wanted):
            logits_nV.requires_grad_(wanted)
            losses = loss_sums(logits_nV, chunk)
            sums += torch.stack([loss.detach().double() for loss in losses])
            weighted = [loss * scale for loss, scale in zip(losses, scales, strict=True) if scale != 0]
            if not wanted or not weighted:
                return
            (slope_nV,) = torch.autograd.grad(torch.stack(weighted).sum(), logits_nV)
        self._chain(slope_nV.to(self.weight_VD.dtype), chunk)

    def _chain(self, slope_nV: Tensor, chunk: slice) -> None:
        if self.grad_ND is not None:
            self.grad_ND[chunk] = slope_nV @ self.weight_VD
        if self.grad_VD is not None and self.grad_VD.dtype == slope_nV.dtype:
            self.grad_VD.addmm_(slope_nV.T, self.hidden_ND[chunk])
        elif self.grad_VD is not None:
            self.grad_VD += slope_nV.T @ self.hidden_ND[chunk]
        if self.grad_V is not None:
            self.grad_V += slope_nV.sum(0)

    def gradients(self, hidden: torch.dtype, weight: torch.dtype) -> list[Tensor | None]:
        """The gradients in the types of the inputs."""
        dtypes = (hidden, weight, weight)
        grads = (self.grad_ND, self.grad_VD, self.grad_V)
        return [None if g is None else g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)]


def _chunk_rows(weight_VD: Tensor) -> int:
    elements = CHUNK_ELEMENTS if weight_VD.device.type == "cpu" else ACCELERATOR_CHUNK_ELEMENTS
    return max(16, elements // weight_VD.shape[0])
