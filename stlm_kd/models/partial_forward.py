"""Run a model up to a block, or from a block on, and read or change the states between blocks.

The model's own forward makes the embeddings, masks and rotary tables, once, while stand-ins in its blocks'
place note what each block is called with. Then the real blocks are called with just that, in a plain loop.

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
"""What the model is called with, by name."""

Change = Callable[[Tensor], Tensor]
"""A block's state (B, T, D) → the state that goes on in its place."""

_NO_CHANGES: Mapping[int, Change] = {}


@dataclass(frozen=True, slots=True)
class BlockInputs:
    """What one block is called with beside the hidden states."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class PartialForward:
    """A model and one input, ready to be run in parts, as often as wanted.

    Dropout of the embeddings was drawn when it was prepared; that of the blocks is drawn at each run.

    Attributes:
        embedded: What the first block meets, (B, T, D).
        blocks: The model's blocks, in order; one object may stand in several places.
        calls: What each of them is called with. They differ where layers have masks of their own kind.
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
        """The state after block ``stop - 1``, and the states after the blocks of ``keep``, all (B, T, D).

        Blocks count from 0. Under an engine that wraps the model, ``prepare`` and all runs belong in its one
        forward, where it sees them.

        Args:
            hidden: What block ``start`` meets; None: the embedded input.
            start: The first block to run.
            stop: The block before which to stop; None: after the last.
            overwrite: By block, what to make of its state before the next block meets it.
            keep: Blocks whose states to return, after ``overwrite``.
        """
        hidden = self.embedded if hidden is None else hidden
        states: dict[int, Tensor] = {}
        for i in range(len(self.blocks))[start:stop]:
            hidden = self.blocks[i](hidden, *self.calls[i].args, **self.calls[i].kwargs)
            if not isinstance(hidden, Tensor):
                raise ModelError(f"{type(self.blocks[i]).__name__}: a block that returns more than its state")
            if i in overwrite:
                hidden = overwrite[i](hidden)
            if i in keep:
                states[i] = hidden
        return hidden, states


def call(model: PreTrainedModel, inputs: Inputs, **options: bool) -> ModelOutput:
    """The model's own output, without a cache from one position to the next.

    Args:
        model: With or without a head.
        inputs: What it is called with, by name.
        options: Switches of its forward, such as ``output_attentions``.

    Raises:
        ModelError: It has no argument of an input's name, and would leave it out without a word.
    """
    import transformers  # takes seconds, and recipes are checked without it

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
    """The model with its input embedded and everything made that its blocks need; no block is run.

    Nothing is cached from one position to the next. Not for two threads on one model: its list of blocks is
    exchanged meanwhile.

    Args:
        model: Of a family that ``architectures.py`` lists, with whatever head.
        inputs: As for its body: ``input_ids``, ``attention_mask``, ``position_ids`` …

    Raises:
        ModelError: The family has no row, or takes no such input.
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
    """The model's own output (``logits`` …) for the state after its last block, (B, T, D).

    The whole model is called without its blocks, so that the last norm and any head are its own. Within
    ``bypassed_head`` the logits are the state that meets the head.

    Raises:
        ModelError: The family has no row.
    """
    site = _site(model)
    stand_ins = [_StandIn() for _ in site.blocks]
    stand_ins[-1].state = hidden
    with _exchanged(site, stand_ins):
        return call(model, inputs)


class _StandIn(nn.Module):
    """Takes a block's place: notes its call and hands on what it meets, or a state that was put in."""

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
    """Where a model keeps its blocks: the attribute of a module."""

    owner: nn.Module
    name: str
    blocks: nn.ModuleList


def _site(model: PreTrainedModel) -> _Site:
    model_type = model.config.model_type
    if model_type not in ARCHITECTURES:
        raise ModelError(
            f"{model_type}: it is not known where this family keeps its blocks; "
            f"known: {', '.join(ARCHITECTURES)}"
        )
    path, _, name = ARCHITECTURES[model_type].blocks.rpartition(".")
    owner = model.base_model.get_submodule(path)
    blocks = getattr(owner, name)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(f"{model_type}: {ARCHITECTURES[model_type].blocks} is not its list of blocks")
    return _Site(owner, name, blocks)


@contextmanager
def _exchanged(site: _Site, stand_ins: list[_StandIn]) -> Iterator[None]:
    setattr(site.owner, site.name, nn.ModuleList(stand_ins))
    try:
        yield
    finally:
        setattr(site.owner, site.name, site.blocks)
