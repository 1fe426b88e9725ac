"""The attention maps of chosen layers, whichever attention the model computes with.

Fast attention never holds its maps, and transformers' eager one gives those of all layers, after dropout and
in half precision. So the chosen layers, and no others, get an attention function of ours: their attention
modules, which look it up by name in their configuration, get a copy of it with our name in it. It stays; the
model's own configuration, which is what is saved, and its masks do not change.

Shapes: B rows, H query heads, G key heads, T queries, K keys, E width of a head, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from stlm_kd.errors import ModelError
from stlm_kd.losses.precision import at_least_float32
from stlm_kd.models.families import ARCHITECTURES

_NAME = "stlm_kd_maps"
_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")
"""What some families hand to their attention and ours does not compute."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The layers whose maps are wanted, by attention module, and the maps so far."""

    layers: Mapping[nn.Module, int]
    maps: dict[int, Tensor]


_reading: ContextVar[_Reading | None] = ContextVar("_reading", default=None)
"""What ``kept_maps`` is reading; None outside of it.

A backward pass that runs blocks again lies outside, computes the same and keeps nothing.
"""


def install_maps(model: PreTrainedModel, layers: Iterable[int]) -> None:
    """Let these layers of the model compute their attention with maps, from now on.

    Harmless to repeat. What the model says changes by rounding alone.

    Args:
        model: Of a family that ``architectures.py`` lists, with whatever head.
        layers: Blocks, counted from 0, that the model has.

    Raises:
        ModelError: The layer's attention cannot be read.
    """
    for layer in layers:
        module = attention_module(model, layer)
        config = module.config
        assert isinstance(config, PretrainedConfig)
        if not hasattr(config, "_attn_implementation"):
            raise ModelError(
                f"{config.model_type}: with transformers {transformers.__version__} attention does not look "
                "its function up by the configuration's _attn_implementation; its attention maps cannot be "
                "read; leave out losses on attention maps, or install another release of transformers"
            )
        if config._attn_implementation != _NAME:
            own = copy.copy(config)
            own._attn_implementation = _NAME
            module.config = own


@contextmanager
def kept_maps(model: PreTrainedModel, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """While it is entered, the model's runs keep the maps of these layers.

    The dictionary gets the log-probabilities (B, H, T, K) of each layer that runs: after rotary embeddings
    and under the model's mask, before dropout, for each query head, in float32 or better; -inf where a query
    may not look, and throughout a query that may look nowhere.

    Raises:
        ModelError: The attention of one of them cannot be read.
    """
    install_maps(model, layers)
    reading = _Reading({attention_module(model, layer): layer for layer in layers}, {})
    token = _reading.set(reading)
    try:
        yield reading.maps
    finally:
        _reading.reset(token)


def attention_module(model: PreTrainedModel, layer: int) -> nn.Module:
    """The layer's one module of self-attention: it knows whether it is causal, and its configuration.

    Raises:
        ModelError: It is not known, or none, or more than one is found.
    """
    family = model.config.model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            f"{family}: it is not known where this family computes its attention; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    block = model.base_model.get_submodule(ARCHITECTURES[family].blocks).get_submodule(str(layer))
    found = [m for m in block.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    if len(found) != 1:
        raise ModelError(
            f"{family}: {len(found)} modules of self-attention found in layer {layer}, 1 expected; "
            "its attention maps cannot be compared; leave out losses on attention or use another model"
        )
    return found[0]


def _attention_with_maps(
    module: nn.Module,
    query_BHTE: Tensor,
    key_BGKE: Tensor,
    value_BGKE: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **unused: object,
) -> tuple[Tensor, Tensor]:
    """The mixed values (B, T, H, E) and what they are mixed by; what attention modules call by its name."""
    _check(module, attention_mask, unused)
    heads = query_BHTE.shape[1]
    key_BHKE, value_BHKE = (_for_each_query_head(x, heads) for x in (key_BGKE, value_BGKE))
    scale = query_BHTE.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query_BHTE.device.type, enabled=False):
        scores_BHTK = at_least_float32(query_BHTE) @ at_least_float32(key_BHKE).transpose(2, 3) * scale
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        log_BHTK = _log_probabilities(scores_BHTK, attention_mask, causal=causal)
    reading = _reading.get()
    if reading is not None and module in reading.layers:
        reading.maps[reading.layers[module]] = log_BHTK
    mixed_by_BHTK = log_BHTK.exp().to(value_BHKE.dtype)
    mixed_by_BHTK = functional.dropout(mixed_by_BHTK, p=dropout, training=module.training)
    return (mixed_by_BHTK @ value_BHKE).transpose(1, 2).contiguous(), mixed_by_BHTK


def _log_probabilities(scores_BHTK: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Log of the softmax over the keys that the mask allows, -inf at the others.

    A mask is true where a query may look, or a number to add, as the model's own attention wants it; None is
    all keys, or the earlier ones.
    """
    if mask is None and (not causal or scores_BHTK.shape[2] == 1):
        return functional.log_softmax(scores_BHTK, dim=-1)
    if mask is None:
        allowed = torch.ones(scores_BHTK.shape[2:], dtype=torch.bool, device=scores_BHTK.device).tril()
    elif mask.dtype == torch.bool:
        allowed = mask
    else:
        allowed = mask > torch.finfo(mask.dtype).min / 2
        scores_BHTK = scores_BHTK + mask.masked_fill(~allowed, 0.0)
    # A finite number first: a query without a key would be NaN, on the way there and back.
    lowest = torch.finfo(scores_BHTK.dtype).min
    log_BHTK = functional.log_softmax(scores_BHTK.masked_fill(~allowed, lowest), dim=-1)
    return log_BHTK.masked_fill(~allowed, float("-inf"))


def _for_each_query_head(shared_BGKE: Tensor, heads: int) -> Tensor:
    """Each key head repeated for the query heads that share it."""
    return shared_BGKE.repeat_interleave(heads // shared_BGKE.shape[1], dim=1)


def _check(module: nn.Module, mask: Tensor | None, given: dict[str, object]) -> None:
    changed = [name for name in _CHANGES_SCORES if given.get(name) is not None]
    if changed or (mask is not None and mask.dim() != 4):
        what = ", ".join(changed) or f"a mask of {mask.dim() if mask is not None else 0} dimensions"
        raise ModelError(
            f"{type(module).__name__}: attention with {what} cannot be read as maps; "
            "load the model with sdpa or eager attention, or leave out losses on attention"
        )


AttentionInterface.register(_NAME, _attention_with_maps)
