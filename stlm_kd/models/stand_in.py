"""A placeholder for a block of a model, which records what the model's own forward gives the block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from stlm_kd.errors import ModelError


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """Arguments of one block besides the hidden states."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


class StandIn(nn.Module):
    """Replaces a block: records its arguments and returns its input, or ``state`` if set."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Tensor | None = None
        self.seen: Tensor | None = None
        self.call = BlockInputs((), {})

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.seen, self.call = hidden_states, BlockInputs(args, kwargs)
        return hidden_states if self.state is None else self.state

    def met(self) -> Tensor:
        if self.seen is None:
            raise ModelError("the model runs without its first block")
        return self.seen
