"""Run only the later positions of a causal model: the earlier ones' keys and values are known.

Nothing that comes later changes what an earlier position is, so after a change from some position on only the
positions from there on have to be run again.

Shapes: B rows, T positions, p first positions that stay, H key heads, E width of a head.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.blocks import Call, Inputs, Prepared, prepare


class Keys:
    """Notes each block's keys and values, (B, H, T, E) each, in the place of transformers' caches."""

    def __init__(self) -> None:
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """The same keys and values."""
        self.kept[layer] = (keys, values)
        return keys, values


class _Before:
    """Puts the keys and values of the first positions before those of the later ones."""

    def __init__(self, keys: Keys, length: int) -> None:
        self.keys, self.length = keys, length

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        before, values_before = (kept[:, :, : self.length] for kept in self.keys.kept[layer])
        return torch.cat([before, keys], dim=2), torch.cat([values_before, values], dim=2)


def noting_keys(prepared: Prepared, *, start: int) -> tuple[Prepared, Keys]:
    """The same model and input, and where the keys from block ``start`` on are once they have run."""
    keys = Keys()
    calls = tuple(
        _with_cache(block, call, keys) if i >= start else call
        for i, (block, call) in enumerate(zip(prepared.blocks, prepared.calls, strict=True))
    )
    return replace(prepared, calls=calls), keys


def prepare_from(
    model: PreTrainedModel, inputs: Inputs, position: int, keys: Keys, *, start: int
) -> Prepared:
    """The model from a position on, for its blocks from ``start`` on.

    Args:
        model: A causal one, whose blocks do not checkpoint their gradients.
        inputs: Of all positions, with ids, positions and a mask of (B, 1, T, T).
        position: The first that is run.
        keys: Of all positions and these blocks.
        start: The first block that will run.
    """
    mask = inputs["attention_mask"]
    assert mask.dim() == 4, "a mask that says of each position what it sees"
    later = {
        "input_ids": inputs["input_ids"][:, position:],
        "position_ids": inputs["position_ids"][:, position:],
        "attention_mask": mask[:, :, position:],
    }
    prepared = prepare(model, later)
    before = _Before(keys, position)
    calls = tuple(
        _with_cache(block, call, before) if i >= start else call
        for i, (block, call) in enumerate(zip(prepared.blocks, prepared.calls, strict=True))
    )
    return replace(prepared, calls=calls)


def _with_cache(block: nn.Module, call: Call, cache: Keys | _Before) -> Call:
    """The same call with a cache, which some families hand over by place and others by name."""
    signature = inspect.signature(block.forward)
    (name,) = {"past_key_values", "layer_past", "cache"} & set(signature.parameters)
    given = signature.bind(None, *call.args, **call.kwargs)
    given.arguments[name] = cache
    return Call(given.args[1:], given.kwargs)
