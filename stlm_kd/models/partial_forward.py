"""Run a model up to a block or from a block on, and read or change the hidden states between blocks.

The model's own forward computes embeddings, masks and rotary tables once, while placeholders instead of its
blocks record the arguments of each block. A plain loop then calls the real blocks with these arguments.

Shapes: B rows, T positions, D width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from stlm_kd.errors import ModelError
from stlm_kd.models.families import ARCHITECTURES

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils.generic import ModelOutput

Inputs = Mapping[str, Tensor]
"""Keyword arguments of a model."""

Change = Callable[[Tensor], Tensor]
"""Function from a block's output (B, T, D) to the hidden states that replace it."""

_NO_CHANGES: Mapping[int, Change] = {}


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """Arguments of one block besides the hidden states."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


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

        Blocks count from 0. Under an engine that wraps the model, call ``prepare`` and all runs within its
        forward.

        Args:
            hidden: Input of block ``start``; None for the embedded input.
            start: First block to run.
            stop: Block before which to stop; None to run all.
            overwrite: By block, a function applied to its output before the next block.
            keep: Blocks whose outputs to return, after ``overwrite``.
        """
        hidden = self.embedded if hidden is None else hidden
        states: dict[int, Tensor] = {}
        for i in range(len(self.blocks))[start:stop]:
            hidden = self.blocks[i](hidden, *self.calls[i].args, **self.calls[i].kwargs)
            if not isinstance(hidden, Tensor):
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
    """The model's own output, without a KV cache.

    Args:
        model: Model with or without a head.
        inputs: Its keyword arguments.
        options: Flags of its forward, such as ``output_attentions``.

    Raises:
        ModelError: It has no argument of an input's name and would silently ignore it.
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

    Not thread-safe: it temporarily replaces the model's list of blocks.

    Args:
        model: Model of a family in ``ARCHITECTURES``, with any head.
        inputs: Keyword arguments of its body: ``input_ids``, ``attention_mask``, ``position_ids`` …

    Raises:
        ModelError: The family is unsupported, or does not accept such an input.
    """
    from transformers import PreTrainedModel

    site = _site(model)
    blocks = tuple(site.blocks)
    stand_ins = [_StandIn() for _ in blocks]
    body = model.base_model
    assert isinstance(body, PreTrainedModel)
    with _exchanged(site, stand_ins):
        call(body, inputs)
    return PartialForward(stand_ins[0].met(), blocks, tuple(stand_in.call for stand_in in stand_ins))


def finish(model: PreTrainedModel, hidden: Tensor, inputs: Inputs) -> ModelOutput:
    """The model's own output (``logits`` …) for the hidden states after its last block, (B, T, D).

    Calls the whole model without its blocks, so that the final norm and any head are its own. Within
    ``bypassed_head`` the logits are the hidden states before the head.

    Raises:
        ModelError: The family is unsupported.
    """
    site = _site(model)
    stand_ins = [_StandIn() for _ in site.blocks]
    stand_ins[-1].state = hidden
    with _exchanged(site, stand_ins):
        return call(model, inputs)


class _StandIn(nn.Module):
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
def _exchanged(site: _Site, stand_ins: list[_StandIn]) -> Iterator[None]:
    setattr(site.owner, site.name, nn.ModuleList(stand_ins))
    try:
        yield
    finally:
        setattr(site.owner, site.name, site.blocks)
