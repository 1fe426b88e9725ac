"""Where a model's weights are."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel


def move(model: PreTrainedModel, device: torch.device) -> None:
    """Move a model's weights to a device."""
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides what it decorates
