"""Losses over a vocabulary without logits for all tokens in memory.

The projection to the vocabulary, the losses and their gradient are computed chunk by chunk during the forward
pass. Only the gradients of the hidden states and of the head, by far the largest tensor, are kept for the
backward pass. Shapes: N tokens, n of one chunk, D width, V vocabulary, K losses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from stlm_kd.losses.precision import at_least_float32, compute_dtype

CHUNK_ELEMENTS = 3 * 2**21
"""Logits per chunk and model: 24 MiB in float32. With a vocabulary of 50,000 this is 125 tokens, the least
for which matrix products are fast."""

BLOCK_ELEMENTS = 2**19
"""Logits that a loss processes at once: 2 MiB, which fit the processor's caches and the allocator's."""

ACCELERATOR_CHUNK_ELEMENTS = 2**25
"""Logits per chunk on accelerators: 128 MiB in float32. A chunk needs hundreds of tokens there. Otherwise
adding to the head's gradient, which every chunk reads and writes, takes longer than the matrix products."""

ACCELERATOR_BLOCK_ELEMENTS = 2**24
"""Large enough that kernel launches take negligible time."""


class ChunkLosses(Protocol):
    """K losses of a chunk of tokens, computed from their logits."""

    def __call__(
        self, logits_nV: Tensor, chunk: slice, *, differentiate: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Each loss's sum over the tokens, (K,) in float64, and the gradient of their weighted total, (n, V).

        The logits are in float32 or better, one row for each token of the chunk, and may be overwritten, also
        by the gradient. The gradient is None for 0, and unless ``differentiate``.
        """
        ...


def chunked_losses(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    losses: ChunkLosses,
    scales: Sequence[float],
    *,
    share: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The differentiable scalar Σ scales · sums, and the K detached sums in float64.

    ``losses`` is called once per chunk; the K ``scales`` are those of the total that it differentiates.
    ``share`` is the fraction of the default chunk size, for losses that hold more tensors of that size.
    """
    rows = chunk_rows(weight_VD, share)
    found: tuple[Tensor, Tensor] = _ChunkedLosses.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        hidden_ND, weight_VD, bias_V, losses, scales, rows
    )
    return found


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        losses: ChunkLosses,
        scales: Sequence[float],
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        compute = compute_dtype(weight_VD)
        projection = _Projection(hidden_ND.to(compute), weight_VD.to(compute), bias_V, ctx.needs_input_grad)
        sums = torch.zeros(len(scales), dtype=torch.float64, device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for chunk in pieces(hidden_ND.shape[0], rows):
                sums += projection.add(chunk, losses)
        ctx.grads = projection.gradients(hidden_ND.dtype, weight_VD.dtype)
        ctx.mark_non_differentiable(sums)
        total = (sums * torch.tensor(scales, dtype=torch.float64, device=sums.device)).sum()
        return total.to(torch.promote_types(weight_VD.dtype, torch.float32)), sums

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, grad_sums: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # the gradients below have no graph
            raise RuntimeError("create_graph: the gradient of chunked losses cannot be differentiated again")
        grads, ctx.grads = ctx.grads, None  # scaled in place below, so a second backward must fail
        return (*(None if g is None else g.mul_(grad_total.to(g.dtype)) for g in grads), None, None, None)


class _Projection:
    """The head applied to chunks of hidden states, and the gradients accumulated in float32 or better."""

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

    def add(self, chunk: slice, losses: ChunkLosses) -> Tensor:
        """Compute a chunk's losses and accumulate their gradients."""
        logits_nV = at_least_float32(functional.linear(self.hidden_ND[chunk], self.weight_VD, self.bias_V))
        wanted = any(grad is not None for grad in (self.grad_ND, self.grad_VD, self.grad_V))
        sums, slope_nV = losses(logits_nV, chunk, differentiate=wanted)
        del logits_nV
        if slope_nV is not None:
            self._chain(slope_nV.to(self.weight_VD.dtype), chunk)
        return sums

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
        """The gradients in the dtypes of the inputs."""
        dtypes = (hidden, weight, weight)
        grads = (self.grad_ND, self.grad_VD, self.grad_V)
        return [None if g is None else g.to(dtype) for g, dtype in zip(grads, dtypes, strict=True)]


def pieces(length: int, size: int) -> Iterator[slice]:
    """Slices of ``size`` that cover ``length`` rows; the last one is clipped.

    Slicing tensors tolerates an end beyond the last row; arithmetic on slice bounds does not.

    >>> list(pieces(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


_counts_for_accelerator = ContextVar("counts_for_accelerator", default=False)


@contextmanager
def accelerator_sizes() -> Iterator[None]:
    """Work on the CPU in the chunks of an accelerator, to count what one would need."""
    token = _counts_for_accelerator.set(True)
    try:
        yield
    finally:
        _counts_for_accelerator.reset(token)


def _is_for_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and not _counts_for_accelerator.get()


def chunk_rows(weight_VD: Tensor, share: float = 1.0) -> int:
    """Number of tokens per chunk."""
    elements = CHUNK_ELEMENTS if _is_for_cpu(weight_VD) else ACCELERATOR_CHUNK_ELEMENTS
    return max(16, int(elements * share) // weight_VD.shape[0])


def block_rows(logits_nV: Tensor) -> int:
    """Number of tokens that a loss processes at once."""
    elements = BLOCK_ELEMENTS if _is_for_cpu(logits_nV) else ACCELERATOR_BLOCK_ELEMENTS
    return max(4, elements // logits_nV.shape[1])
