"""Extract the attention maps of selected layers, whatever attention implementation the model uses.

Fused attention does not materialise its maps, and transformers' eager attention returns those of all layers,
after dropout and in half precision. Therefore only the selected layers use an attention function of this
module: attention modules look it up by name in their configuration and get a copy with our name. The change
is permanent, but the model's own configuration, which is saved, and its masks stay the same.

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

NAME = "stlm_kd_maps"
_CHANGES_SCORES = ("softcap", "position_bias", "s_aux")
"""Arguments that some families pass to their attention and that are not supported here."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """The requested layers by attention module, and the maps collected so far."""

    layers: Mapping[nn.Module, int]
    maps: dict[int, Tensor]


_reading: ContextVar[_Reading | None] = ContextVar("_reading", default=None)
"""The active ``kept_maps`` context; None outside of it.

A backward pass that recomputes blocks runs outside of it and collects nothing.
"""


def install_maps(model: PreTrainedModel, layers: Iterable[int]) -> None:
    """Permanently switch these layers, of a model with any head, to the attention that can return maps.

    Idempotent. The model's outputs change only by rounding. Raises ``ModelError`` if a layer's attention maps
    cannot be extracted.
    """
    for layer in layers:
        module = attention_module(model, layer)
        config = module.config
        assert isinstance(config, PretrainedConfig)
        if not hasattr(config, "_attn_implementation"):
            raise ModelError(
                f"{config.model_type}: with transformers {transformers.__version__} attention does not look "
                "its function up by the configuration's _attn_implementation; its attention maps cannot be "
                "read; remove losses on attention maps, or install another release of transformers"
            )
        if config._attn_implementation != NAME:
            own = copy.copy(config)
            own._attn_implementation = NAME
            module.config = own


@contextmanager
def kept_maps(model: PreTrainedModel, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collect the attention maps of these layers in forward passes within the context.

    The dictionary receives the log-probabilities (B, H, T, K) of each layer that runs: after rotary
    embeddings and the model's mask, before dropout, per query head, in float32 or better; -inf at masked
    keys, and at all keys of a fully masked query. Raises ``ModelError`` as ``install_maps``.
    """
    install_maps(model, layers)
    reading = _Reading({attention_module(model, layer): layer for layer in layers}, {})
    token = _reading.set(reading)
    try:
        yield reading.maps
    finally:
        _reading.reset(token)


def attention_module(model: PreTrainedModel, layer: int) -> nn.Module:
    """The layer's self-attention module, identified by its ``is_causal`` and ``config`` attributes.

    Raises ``ModelError`` if the family is unsupported, or not exactly one module is found.
    """
    family = model.config.model_type
    if family not in ARCHITECTURES:
        raise ModelError(
            f"{family}: the attention modules of this family are unknown; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    block = model.base_model.get_submodule(ARCHITECTURES[family].blocks).get_submodule(str(layer))
    found = [m for m in block.modules() if hasattr(m, "is_causal") and hasattr(m, "config")]
    if len(found) != 1:
        raise ModelError(
            f"{family}: {len(found)} modules of self-attention found in layer {layer}, 1 expected; "
            "its attention maps cannot be compared; remove losses on attention maps or use another model"
        )
    return found[0]


def attention_with_maps(
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
    """Attention outputs (B, T, H, E) and probabilities; registered as an attention function."""
    _check(module, attention_mask, unused)
    heads = query_BHTE.shape[1]
    # Several query heads may share a key head.
    key_BHKE, value_BHKE = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key_BGKE, value_BGKE))
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
    """Log-softmax over the unmasked keys, -inf at the others.

    A mask is boolean (True where unmasked) or additive, as in the model's own attention; None means all keys,
    or the causal mask.
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
    # Finite first: a fully masked query would be NaN in forward and backward.
    lowest = torch.finfo(scores_BHTK.dtype).min
    log_BHTK = functional.log_softmax(scores_BHTK.masked_fill(~allowed, lowest), dim=-1)
    return log_BHTK.masked_fill(~allowed, float("-inf"))


def _check(module: nn.Module, mask: Tensor | None, given: dict[str, object]) -> None:
    changed = [name for name in _CHANGES_SCORES if given.get(name) is not None]
    if changed or (mask is not None and mask.dim() != 4):
        what = ", ".join(changed) or f"a mask of {mask.dim() if mask is not None else 0} dimensions"
        raise ModelError(
            f"{type(module).__name__}: attention with {what} cannot be read as maps; "
            "load the model with sdpa or eager attention, or remove losses on attention maps"
        )


AttentionInterface.register(NAME, attention_with_maps)
