"""What a model says after an intervention: its later half, run again with some states overwritten.

Nothing is run that is known: the run begins again from the base's own state after the first overwritten
block; a source's run ends after the deepest block that is aligned; states of the base batch's own rows need
no run, and of the rows in other micro-batches only those that are sources. All positions are run again: of
packed rows one is overwritten near the start, so that leaving out what comes before it saves nothing.

Shapes: B rows, T positions, P places, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.interventions.plan import Joined, Noise, OtherStates, OwnStates, Plan, Tokens, parts_of
from stlm_kd.models.forward import inputs_of
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, finish_forward, forward_with_outputs
from stlm_kd.models.partial_forward import Change, Inputs, prepare

States = Mapping[Site, Tensor]
"""States of a batch, (B, T, D) each."""


@dataclass(frozen=True, slots=True)
class InterventionPass:
    """One model's part in an intervention.

    Attributes:
        model: The student or a teacher.
        layers: The blocks whose outputs are overwritten, ascending.
        plan: At which places, and by what.
        reader: By which examples hold what a teacher's own tokenizer reads.
        fresh_dropout: Whether no run shares its dropout with another, at the full price.
    """

    model: PreTrainedModel
    layers: tuple[int, ...]
    plan: Plan
    reader: str = ""
    fresh_dropout: bool = False

    def needs(self) -> OutputSpec:
        """What to read of the base, so that ``after`` can go on from there."""
        source = self.plan.source
        if isinstance(source, Tokens):
            return OutputSpec()
        sites = self._noise_sites(source) if isinstance(source, Noise) else set[Site]()
        if self.fresh_dropout:
            return OutputSpec(sites=frozenset(sites))
        if not isinstance(source, Noise) and any(isinstance(part, OwnStates) for part in parts_of(source)):
            sites |= {self._source_site(layer) for layer in self.layers}
        return OutputSpec(sites=frozenset({*sites, self.layers[0]}), resume=self.layers[0])

    def after(self, batch: AnyBatch, base: ModelOutputs, needs: OutputSpec) -> ModelOutputs:
        """What is needed of the model after the intervention: what its head meets, logits, the last state.

        Args:
            batch: The base.
            base: What was read of it, by ``needs`` and whatever else.
            needs: What to read.
        """
        inputs = inputs_of(batch, self.model, reader=self.reader)
        if isinstance(self.plan.source, Tokens):
            return forward_with_outputs(self.model, self._with_tokens(inputs, self.plan.source), needs)
        writes = self._writes(batch, base, inputs)
        if self.fresh_dropout:
            hidden, _ = prepare(self.model, inputs).run(overwrite=writes)
        else:
            assert base.prepared is not None
            first = self.layers[0]
            hidden = writes.pop(first)(base.states[first])
            hidden, _ = base.prepared.run(hidden, start=first + 1, overwrite=writes)
        return finish_forward(self.model, inputs, hidden, needs)

    def _source_site(self, layer: int) -> Site:
        """Where the source's state is read that is put in the place of a block's output."""
        if self.plan.source_site == "block-output":
            return layer
        return layer - 1 if layer else "embeddings"

    def _noise_sites(self, noise: Noise) -> set[Site]:
        """States of the base from which random ones are made."""
        sites: set[Site] = set()
        if noise.noise == "matched":
            sites.update(self.layers)
        if noise.map == "residual":
            sites.update(site for layer in self.layers[1:] for site in (layer - 1, layer))
        return sites

    def _source_states(self, source: OwnStates | OtherStates, inputs: Inputs, base: ModelOutputs) -> States:
        """The states from which those that are put in are taken."""
        sites = frozenset(self._source_site(layer) for layer in self.layers)
        if isinstance(source, OtherStates):
            read = inputs_of(source.batch, self.model, reader=self.reader)
            return forward_with_outputs(self.model, read, OutputSpec(sites=sites)).states
        if self.fresh_dropout:
            return forward_with_outputs(self.model, inputs, OutputSpec(sites=sites)).states
        return base.states

    def _writes(self, batch: AnyBatch, base: ModelOutputs, inputs: Inputs) -> dict[int, Change]:
        """By block, what overwrites its output."""
        source = self.plan.source
        if isinstance(source, Noise):
            return {
                layer: _Write(self.plan, self._noise(source, layer, batch, base), source.shares)
                for layer in self.layers
            }
        assert isinstance(source, (OwnStates, OtherStates, Joined))
        read = [(part.places, self._source_states(part, inputs, base)) for part in parts_of(source)]
        assert sum(len(places) for places, _ in read) == len(self.plan.base)

        def states_at(site: Site) -> Tensor:
            return torch.cat([states[site][places.rows, places.positions] for places, states in read])

        return {layer: _Write(self.plan, states_at(self._source_site(layer))) for layer in self.layers}

    @torch.no_grad()
    def _noise(self, noise: Noise, layer: int, batch: AnyBatch, base: ModelOutputs) -> Tensor:
        """What is mixed in at each place, (P, D)."""
        first, rows, positions = self.layers[0], self.plan.base.rows, self.plan.base.positions
        embedding = self.model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        if noise.noise == "token-embedding":
            value_PD = embedding[noise.tokens]
        else:
            value_PD = noise.draw(embedding.shape[1]).to(embedding)
        if noise.noise == "matched":
            state_ND = base.states[layer][self._attended(batch)]
            value_PD = state_ND.mean(0) + state_ND.std(0, correction=0) * value_PD
        if noise.map == "residual" and layer != first:
            added_BTD = base.states[layer] - base.states[layer - 1]
            value_PD = value_PD + added_BTD[rows, positions]
        return value_PD

    def _attended(self, batch: AnyBatch) -> Tensor:
        """The positions that are not padding, (B, T)."""
        if isinstance(batch, Batch):
            return batch.attention_mask
        return batch.reading(self.reader).attention_mask & (batch.example_ids >= 0)[:, None]

    def _with_tokens(self, inputs: Inputs, tokens: Tokens) -> Inputs:
        """The same with other tokens at the places."""
        places = (self.plan.base.rows, self.plan.base.positions)
        return {**inputs, "input_ids": inputs["input_ids"].index_put(places, tokens.ids)}


@dataclass(frozen=True, slots=True)
class _Write:
    """Puts values, (P, D), in the places of a plan, mixed with what is there by shares (P,)."""

    plan: Plan
    values: Tensor
    shares: Tensor | None = None

    def __call__(self, state_BTD: Tensor) -> Tensor:
        places, values_PD = (self.plan.base.rows, self.plan.base.positions), self.values
        if self.shares is not None:
            shares_P1 = self.shares.to(state_BTD)[:, None]
            values_PD = shares_P1 * state_BTD[places] + (1 - shares_P1) * values_PD
        return state_BTD.index_put(places, values_PD.to(state_BTD.dtype))
