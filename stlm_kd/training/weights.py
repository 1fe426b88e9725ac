"""The tensors of a module that belong in a checkpoint: those that training changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from stlm_kd.errors import CheckpointError
from stlm_kd.training.optimizer import trainable_parameters


def model_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters, tied ones once, and the persistent buffers."""
    persistent = module.state_dict().keys()
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in persistent}
    return {**trainable_parameters(module), **buffers}


@torch.no_grad()
def load_model_tensors(module: nn.Module, tensors: Mapping[str, Tensor], *, place: Path) -> None:
    """Copy tensors into the module's own, which preserves ties and the optimizer's references.

    Raises:
        CheckpointError: names or shapes differ from the module's; the message contains ``place``.
    """
    own = model_tensors(module)
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    differing = sorted(n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape)
    faults = [
        f"{len(names)} {what} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", differing))
        if names
    ]
    if faults:
        raise CheckpointError(
            f"{place}: its tensors are not those of this model: {'; '.join(faults)}; "
            "start afresh without resuming"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
