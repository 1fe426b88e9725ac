"""The precision in which losses are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(logits: Tensor) -> Tensor:
    """Half precision raised to float32, since sums over a vocabulary lose too much in it; float64 stays."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def compute_dtype(weight: Tensor) -> torch.dtype:
    """What the surrounding code multiplies matrices in: autocast's type, or the weight's own."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
