"""The precision in which losses are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stlm_kd.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Cast half precision to float32, since sums over a vocabulary need it; float64 is kept."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def compute_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of matrix products: autocast's if enabled, otherwise the weight's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
