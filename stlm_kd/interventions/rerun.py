"""Rerun a model's upper layers with some hidden states overwritten.

Known results are reused: the rerun starts from the base's hidden states after the first overwritten block; a
source pass ends after the deepest aligned block; rows of the base batch need no source pass, and of other
micro-batches only source rows are run. All positions are rerun: in packed rows, positions are overwritten
near the start, so skipping earlier ones would save nothing. Shapes: B rows, T positions, P exchanged
positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.interventions.plan import Joined, Noise, OtherStates, OwnStates, Plan, Tokens, parts_of
from stlm_kd.models.forward import inputs_of
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import ModelOutputs, OutputSpec, finish_forward, forward_with_outputs
from stlm_kd.models.partial_forward import Change, Inputs, prepare

States = Mapping[Site, Tensor]
"""Hidden states of a batch by site, (B, T, D) each."""


@dataclass(frozen=True, slots=True)
class InterventionPass:
    """The forward pass of one model with the outputs of some blocks (``layers``, ascending) overwritten.

    ``reader`` is the key of the examples' token ids from a teacher's own tokenizer; with ``fresh_dropout``
    each pass draws dropout independently, at full cost.
    """

    model: PreTrainedModel
    layers: tuple[int, ...]
    plan: Plan
    reader: str = ""
    fresh_dropout: bool = False

    def needs(self) -> OutputSpec:
        """Outputs of the base pass that ``after`` needs."""
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
        """Head input, logits and last hidden states after the intervention, as ``needs`` requests.

        ``base`` are the outputs of the base batch, including those in ``needs()``.
        """
        inputs = inputs_of(batch, self.model, reader=self.reader)
        if isinstance(self.plan.source, Tokens):
            places = (self.plan.base.rows, self.plan.base.positions)
            ids = inputs["input_ids"].index_put(places, self.plan.source.ids)
            return forward_with_outputs(self.model, {**inputs, "input_ids": ids}, needs)
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
        """Site of the source's hidden states that replace a block's output."""
        if self.plan.source_site == "block-output":
            return layer
        return layer - 1 if layer else "embeddings"

    def _noise_sites(self, noise: Noise) -> set[Site]:
        """Sites of the base that the noise depends on."""
        sites: set[Site] = set()
        if noise.noise == "matched":
            sites.update(self.layers)
        if noise.map == "residual":
            sites.update(site for layer in self.layers[1:] for site in (layer - 1, layer))
        return sites

    def _source_states(self, source: OwnStates | OtherStates, inputs: Inputs, base: ModelOutputs) -> States:
        """The source's hidden states."""
        if isinstance(source, OtherStates):
            inputs = inputs_of(source.batch, self.model, reader=self.reader)
        elif not self.fresh_dropout:
            return base.states
        sites = frozenset(self._source_site(layer) for layer in self.layers)
        return forward_with_outputs(self.model, inputs, OutputSpec(sites=sites)).states

    def _writes(self, batch: AnyBatch, base: ModelOutputs, inputs: Inputs) -> dict[int, Change]:
        """The function that overwrites the output of each block."""
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
        """The noise at each position, (P, D)."""
        first, rows, positions = self.layers[0], self.plan.base.rows, self.plan.base.positions
        embedding = self.model.get_input_embeddings()  # called, since its weight may be elsewhere until then
        assert isinstance(embedding, nn.Embedding)
        if noise.noise == "token-embedding":
            value_PD: Tensor = embedding(noise.tokens)
        else:
            value_PD = noise.draw(embedding.embedding_dim).to(embedding.weight.dtype)
        if noise.noise == "matched":
            state_ND = base.states[layer][self._attended(batch)]
            value_PD = state_ND.mean(0) + state_ND.std(0, correction=0) * value_PD
        if noise.map == "residual" and layer != first:
            added_BTD = base.states[layer] - base.states[layer - 1]
            value_PD = value_PD + added_BTD[rows, positions]
        return value_PD

    def _attended(self, batch: AnyBatch) -> Tensor:
        """Mask of the non-padding positions, (B, T)."""
        if isinstance(batch, Batch):
            return batch.attention_mask
        return batch.reading(self.reader).attention_mask & (batch.example_ids >= 0)[:, None]


@dataclass(frozen=True, slots=True)
class _Write:
    """Writes values (P, D) to a plan's positions, mixed with the existing ones by ``shares`` (P,)."""

    plan: Plan
    values: Tensor
    shares: Tensor | None = None

    def __call__(self, state_BTD: Tensor) -> Tensor:
        places, values_PD = (self.plan.base.rows, self.plan.base.positions), self.values
        if self.shares is not None:
            shares_P1 = self.shares.to(state_BTD)[:, None]
            values_PD = shares_P1 * state_BTD[places] + (1 - shares_P1) * values_PD
        return state_BTD.index_put(places, values_PD.to(state_BTD.dtype))
