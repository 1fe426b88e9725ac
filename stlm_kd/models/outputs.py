"""Read a model's states and attention maps in one run, which goes no deeper than what is asked of it.

Shapes: B rows, T positions, D width, H heads, V outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from stlm_kd.models.attention_maps import kept_maps
from stlm_kd.models.forward import bypassed_head
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.partial_forward import Inputs, PartialForward, call, finish, prepare


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What to read of a model; needs of several readers are joined by ``|``.

    Attributes:
        head_input: The state that meets a language model's head.
        logits: What the model's own head says of it.
        sites: States.
        maps: Layers whose attention maps to read.
        resume: The block after which the model will be run again; None: it will not.
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
        """The deepest block that has to run: -1 for none, None where the body must run to its end."""
        if self.head_input or self.logits or "last" in self.sites:
            return None
        return max([-1, *self.maps, *(site for site in self.sites if isinstance(site, int))])


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """What was read of a model.

    Attributes:
        head_input: (B, T, D).
        logits: The model's own: (B, T, V) of a language model, (B, V) of a classifier; a span's start and
            end, (B, T, 2), where a model answers questions.
        states: (B, T, D) each.
        maps: Log-probabilities, (B, H, T, T) each; see ``kept_maps``.
        prepared: With what its blocks were run, to run them again.
    """

    head_input: Tensor | None = None
    logits: Tensor | None = None
    states: Mapping[Site, Tensor] = field(default_factory=dict)
    maps: Mapping[int, Tensor] = field(default_factory=dict)
    prepared: PartialForward | None = None


def forward_with_outputs(model: PreTrainedModel, inputs: Inputs, needs: OutputSpec) -> ModelOutputs:
    """What is asked for, of one run of the model.

    A run that needs neither the head nor the last state ends after the deepest block that it needs. Dropout,
    gradients and gradient checkpointing are as in the model's own forward. Under an engine that wraps the
    model this belongs in its one forward.

    Args:
        model: Of a family that ``architectures.py`` lists, with whatever head; ``head_input`` is a language
            model's.
        inputs: What it is called with, by name.
        needs: What to read; layers that the model has.

    Raises:
        ModelError: The family has no row, or its attention cannot be read.
    """
    if needs.last_block is not None or needs.maps or needs.sites - {"last"} or needs.resume is not None:
        return _in_parts(model, inputs, needs)
    return _end(model, needs, lambda part: call(part, inputs))


def finish_forward(model: PreTrainedModel, inputs: Inputs, hidden: Tensor, needs: OutputSpec) -> ModelOutputs:
    """What is asked for that lies behind the last block, from the state after it, (B, T, D)."""
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
    """What lies behind the last block; ``run`` gives the output of the model or of its body."""
    if not needs.head_input and not needs.logits:
        body = model.base_model
        assert isinstance(body, PreTrainedModel)
        return ModelOutputs(states={"last": run(body)["last_hidden_state"]})
    noted: dict[str, Tensor] = {}

    def note_last(_body: nn.Module, _args: object, output: ModelOutput) -> None:
        noted["last"] = output["last_hidden_state"]

    def note_head_input(_head: nn.Module, args: tuple[Tensor]) -> None:
        noted["head_input"] = args[0]

    hooks = [model.base_model.register_forward_hook(note_last)]
    if needs.head_input:
        hooks.append(model.get_output_embeddings().register_forward_pre_hook(note_head_input))
    try:
        with nullcontext() if needs.logits else bypassed_head(model):
            output = run(model)
    finally:
        for hook in hooks:
            hook.remove()
    return ModelOutputs(
        head_input=noted.get("head_input"),
        logits=logits_of(output) if needs.logits else None,
        states={"last": noted["last"]} if "last" in needs.sites else {},
    )


def logits_of(output: ModelOutput) -> Tensor:
    """A model's own logits; of one that answers questions a span's start and end, (B, T, 2)."""
    logits = output.get("logits")
    if logits is None:
        logits = torch.stack([output["start_logits"], output["end_logits"]], dim=-1)
    assert isinstance(logits, Tensor)
    return logits
