"""Run a model up to a block or from a block on, and read or change the hidden states (B, T, D) in between.

The model's own forward computes embeddings, masks and rotary tables once, while placeholders instead of its
blocks record the arguments of each block. A plain loop then calls the real blocks with these arguments.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stlm_kd.errors import ModelError
from stlm_kd.lazy import nn, torch
from stlm_kd.models.families import ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

    from stlm_kd.models.stand_in import BlockInputs, StandIn

Inputs: TypeAlias = "Mapping[str, Tensor]"
"""Keyword arguments of a model."""

Change: TypeAlias = "Callable[[Tensor], Tensor]"
"""Function from a block's output (B, T, D) to the hidden states that replace it."""

_NO_CHANGES: Mapping[int, Change] = {}


@dataclass(frozen=True, slots=True)
class PartialForward:
    """A model with one input, ready to be run in parts any number of times.

    Dropout of the embeddings is drawn once, by ``prepare``; that of the blocks in each run.

    Attributes:
        embedded: Input of the first block, (B, T, D).
        blocks: The model's blocks, in order; an object may occur several times.
        calls: Arguments of each block. They differ if layers have different masks.
    """

    embedded: Tensor
    blocks: tuple[nn.Module, ...]
    calls: tuple[BlockInputs, ...]

    def run(
        self,
        hidden: Tensor | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        overwrite: Mapping[int, Change] = _NO_CHANGES,
        keep: Collection[int] = (),
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Run blocks; returns the hidden states after block ``stop - 1`` and those of ``keep``, (B, T, D).

        Blocks count from 0. ``hidden`` is the input of block ``start``, by default the embedded input.
        Functions of ``overwrite`` change a block's output before it is kept and passed to the next block.
        Under an engine that wraps the model, call ``prepare`` and all runs within its forward.
        """
        hidden = self.embedded if hidden is None else hidden
        states: dict[int, Tensor] = {}
        for i in range(len(self.blocks))[start:stop]:
            hidden = self.blocks[i](hidden, *self.calls[i].args, **self.calls[i].kwargs)
            if not isinstance(hidden, torch.Tensor):
                raise ModelError(
                    f"{type(self.blocks[i]).__name__}: the block returns {type(hidden).__name__}, "
                    "expected a tensor; use another model"
                )
            if i in overwrite:
                hidden = overwrite[i](hidden)
            if i in keep:
                states[i] = hidden
        return hidden, states


def call(model: PreTrainedModel, inputs: Inputs, **options: bool) -> ModelOutput:
    """The own output of a model with or without a head, without a KV cache.

    ``options`` are flags of its forward, such as ``output_attentions``. Raises ``ModelError`` if the model
    has no argument of an input's name and would silently ignore it.
    """
    import transformers  # slow import; checking recipes does not need it

    names = inspect.signature(model.forward).parameters
    known = {*names, *inspect.signature(model.base_model.forward).parameters}
    for name in inputs:
        if name not in known:
            raise ModelError(
                f"{type(model).__name__}: with transformers {transformers.__version__} its forward has no "
                f"{name}; use another model, or install another release of transformers"
            )
    no_cache = {"use_cache": False} if "use_cache" in names else {}
    output = model(**no_cache, **inputs, **options)
    assert isinstance(output, transformers.utils.generic.ModelOutput)
    return output


def prepare(model: PreTrainedModel, inputs: Inputs) -> PartialForward:
    """Embed the input and compute the arguments of all blocks, without running a block or using a KV cache.

    ``inputs`` are keyword arguments of its body: ``input_ids``, ``attention_mask``, ``position_ids`` … Not
    thread-safe: it temporarily replaces the model's list of blocks. Raises ``ModelError`` if the family is
    not in ``ARCHITECTURES``, or does not accept such an input.
    """
    from transformers import PreTrainedModel

    from stlm_kd.models.stand_in import StandIn

    site = _site(model)
    blocks = tuple(site.blocks)
    stand_ins = [StandIn() for _ in blocks]
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    with _exchanged(site, stand_ins):
        call(body, inputs)
    return PartialForward(stand_ins[0].met(), blocks, tuple(stand_in.call for stand_in in stand_ins))


def finish(model: PreTrainedModel, hidden: Tensor, inputs: Inputs) -> ModelOutput:
    """The model's own output (``logits`` …) for the hidden states after its last block, (B, T, D).

    Calls the whole model without its blocks, so that the final norm and any head are its own. Within
    ``bypassed_head`` the logits are the hidden states before the head. Raises ``ModelError`` as ``prepare``.
    """
    from stlm_kd.models.stand_in import StandIn

    site = _site(model)
    stand_ins = [StandIn() for _ in site.blocks]
    stand_ins[-1].state = hidden
    with _exchanged(site, stand_ins):
        return call(model, inputs)


def blocks_of(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """A model's blocks, in order; an object may occur several times. Raises ``ModelError`` as ``prepare``."""
    return tuple(_site(model).blocks)


@dataclass(frozen=True, slots=True)
class _Site:
    """Location of a model's blocks: attribute ``name`` of module ``owner``."""

    owner: nn.Module
    name: str
    blocks: nn.ModuleList


def _site(model: PreTrainedModel) -> _Site:
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"{model_type}: the blocks of this family are unknown; supported: {', '.join(ARCHITECTURES)}"
        )
    where = ARCHITECTURES[model_type].blocks
    path, _, name = where.rpartition(".")
    parts = dict(model.base_model.named_modules())
    blocks = parts.get(where)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"{model_type}: {where} is not its list of blocks")
    return _Site(parts[path], name, blocks)


@contextmanager
def _exchanged(site: _Site, stand_ins: list[StandIn]) -> Iterator[None]:
    setattr(site.owner, site.name, nn.ModuleList(stand_ins))
    try:
        yield
    finally:
        setattr(site.owner, site.name, site.blocks)
