"""Extract hidden states and attention maps in one forward pass, no deeper than needed.

Shapes: B rows, T positions, D width, H heads, V tokens or classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from stlm_kd.errors import ModelError
from stlm_kd.models.attention_maps import kept_maps
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import bypassed_head
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.partial_forward import Inputs, PartialForward, call, finish, prepare


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """The outputs to extract from a model; ``|`` joins specifications.

    Attributes:
        head_input: The hidden states before a language model's head.
        logits: The logits of the model's head.
        sites: Layers whose hidden states to return.
        maps: Layers whose attention maps to return.
        resume: Block after which the model will be run again; None if it will not.
    """

    head_input: bool = False
    logits: bool = False
    sites: frozenset[Site] = frozenset()
    maps: frozenset[int] = frozenset()
    resume: int | None = None

    def __or__(self, other: OutputSpec) -> OutputSpec:
        return OutputSpec(
            head_input=self.head_input or other.head_input,
            logits=self.logits or other.logits,
            sites=self.sites | other.sites,
            maps=self.maps | other.maps,
            resume=min((n for n in (self.resume, other.resume) if n is not None), default=None),
        )

    @property
    def last_block(self) -> int | None:
        """The deepest block that has to run: -1 for none, None for the whole body."""
        if self.head_input or self.logits or "last" in self.sites:
            return None
        return max([-1, *self.maps, *(site for site in self.sites if isinstance(site, int))])


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """Extracted outputs of a model.

    Attributes:
        head_input: Hidden states before the head, (B, T, D).
        logits: The model's logits: (B, T, V) of a language model, (B, V) of a classifier; start and end of a
            span, (B, T, 2), of a question-answering model.
        states: Hidden states by layer, (B, T, D) each.
        maps: Log attention probabilities by layer, (B, H, T, T) each; see ``kept_maps``.
        prepared: Block inputs, to run the blocks again.
    """

    head_input: Tensor | None = None
    logits: Tensor | None = None
    states: Mapping[Site, Tensor] = field(default_factory=dict)
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    prepared: PartialForward | None = None

    def to(self, device: torch.device) -> ModelOutputs:
        """The same tensors on a device; ``prepared`` stays where the model runs."""
        return replace(self.each(lambda part: part.to(device, non_blocking=True)), prepared=self.prepared)

    def each(self, change: Callable[[Tensor], Tensor]) -> ModelOutputs:
        """Apply a function to every tensor; without ``prepared``."""
        return ModelOutputs(
            head_input=None if self.head_input is None else change(self.head_input),
            logits=None if self.logits is None else change(self.logits),
            states={site: change(state) for site, state in self.states.items()},
            maps={layer: change(maps) for layer, maps in self.maps.items()},
        )


def forward_with_outputs(model: PreTrainedModel, inputs: Inputs, needs: OutputSpec) -> ModelOutputs:
    """Run the model, with any head, once and extract the requested outputs, of layers that it has.

    A run that needs neither the head nor the last hidden state stops after the deepest block needed. Dropout,
    gradients and gradient checkpointing are as in the model's own forward. Under an engine that wraps the
    model, call this within its forward. ``head_input`` needs a language model. Raises ``ModelError`` if the
    family is not in ``ARCHITECTURES``, or its attention maps cannot be extracted.
    """
    if needs.last_block is not None or needs.maps or needs.sites - {"last"} or needs.resume is not None:
        return _in_parts(model, inputs, needs)
    return _end(model, needs, lambda part: call(part, inputs))


def finish_forward(model: PreTrainedModel, inputs: Inputs, hidden: Tensor, needs: OutputSpec) -> ModelOutputs:
    """Extract the outputs behind the last block, from the hidden states after it, (B, T, D)."""
    return _end(model, needs, lambda part: finish(part, hidden, inputs))


def _in_parts(model: PreTrainedModel, inputs: Inputs, needs: OutputSpec) -> ModelOutputs:
    last = needs.last_block
    prepared = prepare(model, inputs)
    with kept_maps(model, needs.maps) as maps:
        hidden, kept = prepared.run(
            stop=None if last is None else last + 1,
            keep={site for site in needs.sites if isinstance(site, int)},
        )
    states: dict[Site, Tensor] = dict(kept.items())
    if "embeddings" in needs.sites:
        states["embeddings"] = prepared.embedded
    again = None if needs.resume is None else prepared
    if last is not None:
        return ModelOutputs(states=states, maps=maps, prepared=again)
    end = finish_forward(model, inputs, hidden, needs)
    return ModelOutputs(end.head_input, end.logits, {**states, **end.states}, maps, again)


def _end(
    model: PreTrainedModel, needs: OutputSpec, run: Callable[[PreTrainedModel], ModelOutput]
) -> ModelOutputs:
    """Extract the outputs behind the last block; ``run`` returns the output of the model or its body."""
    if not needs.head_input and not needs.logits:
        body = model.base_model
        assert isinstance(body, PreTrainedModel)
        return ModelOutputs(states={"last": run(body)["last_hidden_state"]})
    noted: dict[str, Tensor] = {}

    def note_last(_body: nn.Module, _args: object, output: ModelOutput) -> None:
        noted["last"] = output["last_hidden_state"]

    def note_head_input(_head: nn.Module, args: tuple[Tensor]) -> None:
        noted["head_input"] = args[0]

    row = ARCHITECTURES.get(model.config.model_type)
    body = model.base_model.get_submodule("" if row is None else row.body)
    with body.register_forward_hook(note_last), ExitStack() as stack:
        if needs.head_input:
            stack.enter_context(model.get_output_embeddings().register_forward_pre_hook(note_head_input))
        if not needs.logits:
            stack.enter_context(bypassed_head(model))
        output = run(model)
    if "last" in needs.sites and "last" not in noted:
        raise ModelError(f"{type(model).__name__}: it does not run its {type(body).__name__} as a whole")
    return ModelOutputs(
        head_input=noted.get("head_input"),
        logits=logits_of(output) if needs.logits else None,
        states={"last": noted["last"]} if "last" in needs.sites else {},
    )


def logits_of(output: ModelOutput) -> Tensor:
    """A model's logits; for a question-answering model, start and end of the span, (B, T, 2)."""
    logits = output.get("logits")
    if logits is None:
        logits = torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    assert isinstance(logits, Tensor)
    return logits
