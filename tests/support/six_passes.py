"""Interchange intervention training the plain way: six whole runs with hooks, and dense losses by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.interventions.plan import Noise, OtherStates, OwnStates, Plan, Positions, Tokens
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import model_inputs

Overwrite = Callable[[Tensor], Tensor]


@dataclass
class Run:
    """One whole run: logits, the last hidden state, and what each block was given and gave."""

    logits: Tensor
    last: Tensor
    met: dict[int, Tensor]
    gave: dict[int, Tensor]


def whole_run(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], overwrite: Mapping[int, Overwrite] | None = None
) -> Run:
    met: dict[int, Tensor] = {}
    gave: dict[int, Tensor] = {}
    last: list[Tensor] = []
    blocks = model.base_model.get_submodule(ARCHITECTURES[model.config.model_type].blocks)

    def hook_of(i: int) -> Callable[..., Tensor]:
        def hook(_block: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            met[i] = args[0]
            gave[i] = output if overwrite is None or i not in overwrite else overwrite[i](output)
            return gave[i]

        return hook

    hooks = [block.register_forward_hook(hook_of(i)) for i, block in enumerate(blocks)]
    hooks.append(
        model.base_model.register_forward_hook(lambda _m, _a, said: last.append(said["last_hidden_state"]))
    )
    logits = model(**inputs, use_cache=False).logits
    for handle in hooks:
        handle.remove()
    return Run(logits, last[0], met, gave)


def counterfactual(model: PreTrainedModel, batch: Batch, plan: Plan, layers: tuple[int, ...]) -> Run:
    """The run on the base with the layers overwritten, place by place."""
    inputs, source = model_inputs(batch, model), plan.source
    if isinstance(source, Tokens):
        ids_BT = batch.input_ids.clone()
        for i, (row, position) in enumerate(pairs(plan.base)):
            ids_BT[row, position] = source.ids[i]
        return whole_run(model, {**inputs, "input_ids": ids_BT})
    if isinstance(source, Noise):
        return whole_run(model, inputs, mixed(model, batch, plan, source, layers))
    read = source.batch if isinstance(source, OtherStates) else batch
    other = whole_run(model, model_inputs(read, model))
    states = other.met if plan.source_site == "block-input" else other.gave
    return whole_run(model, inputs, {layer: exchanged(plan, source, states[layer]) for layer in layers})


def exchanged(plan: Plan, source: OwnStates | OtherStates, states: Tensor) -> Overwrite:
    def overwrite(state: Tensor) -> Tensor:
        state = state.clone()
        for (row, position), (other, place) in zip(pairs(plan.base), pairs(source.places), strict=True):
            state[row, position] = states[other, place]
        return state

    return overwrite


def mixed(
    model: PreTrainedModel, batch: Batch, plan: Plan, noise: Noise, layers: tuple[int, ...]
) -> dict[int, Overwrite]:
    with torch.no_grad():
        base = whole_run(model, model_inputs(batch, model))
    embedding = model.get_input_embeddings().weight.detach()
    width = embedding.shape[1]

    def y(layer: int, i: int, row: int, position: int) -> Tensor:
        value = noise.draw(width)[i].to(embedding)
        if noise.noise == "token-embedding":
            value = embedding[noise.tokens[i]]
        if noise.noise == "matched":
            known = base.gave[layer][batch.attention_mask]
            centre = known.mean(0)
            value = centre + (known - centre).square().mean(0).sqrt() * value
        if noise.map == "residual" and layer > layers[0]:
            value = value + (base.gave[layer] - base.met[layer])[row, position]
        return value

    def overwrite_of(layer: int) -> Overwrite:
        def overwrite(state: Tensor) -> Tensor:
            state = state.clone()
            for i, (row, position) in enumerate(pairs(plan.base)):
                share = float(noise.shares[i])
                state[row, position] = share * state[row, position] + (1 - share) * y(layer, i, row, position)
            return state

        return overwrite

    return {layer: overwrite_of(layer) for layer in layers}


def pairs(places: Positions) -> list[tuple[int, int]]:
    return list(zip(places.rows.tolist(), places.positions.tolist(), strict=True))


def kl_sum(student: Tensor, teacher: Tensor, mask_BT: Tensor, temperature: float) -> Tensor:
    """T² Σ KL(teacher || student) over the positions under the mask."""
    log_student = functional.log_softmax(student[mask_BT] / temperature, -1)
    log_teacher = functional.log_softmax(teacher[mask_BT] / temperature, -1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum()


def cosine_sum(student: Tensor, teacher: Tensor, mask_BT: Tensor) -> Tensor:
    return (1 - functional.cosine_similarity(student[mask_BT], teacher[mask_BT], dim=-1)).sum()


def labels_sum(student: Tensor, batch: Batch) -> Tensor:
    return functional.cross_entropy(
        student.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
