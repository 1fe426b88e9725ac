"""Parameters, bytes and FLOPs of a recipe's models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from stlm_kd.data.dealing import share_run_again
from stlm_kd.estimate.simulation.simulate import MicroBatch
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.speed import Work
from stlm_kd.models.load import count_parameters
from stlm_kd.pipeline.builders.flops import StepShape, flops_by_part


@dataclass(frozen=True, slots=True)
class ModelSize:
    """A model's parameters, those of its embedding and head among them, and the bytes of its weights.

    ``place`` is its part in training: ``trained``, a live teacher's placement, or ``cached``.
    """

    name: str
    place: str
    parameters: int
    embedding: int
    num_bytes: int


def flops_of(skeleton: Skeleton, steps: int) -> dict[str, float]:
    """The FLOPs of an optimizer step by part, as reports of runs count them, and of recomputed blocks."""
    recipe, train = skeleton.recipe, skeleton.recipe.train
    again = 0.0
    if skeleton.job.pairs_rows:
        micro = train.micro_batch or train.effective_batch
        again = share_run_again(train.effective_batch, micro_batch=micro, world_size=1)
    counted = recipe.data.masked_share or 1.0
    reading = StepShape(train.effective_batch, recipe.data.context, counted, again)
    found = flops_by_part(skeleton.step(), reading, steps=steps)
    if train.gradient_checkpointing:
        found["recomputed by gradient checkpointing"] = found["student"] / 3
    return {part: number for part, number in found.items() if number}


def micro_work(skeleton: Skeleton, run: MicroBatch, flops: Mapping[str, float]) -> Work:
    """The work of a micro-batch, of the FLOPs of a step."""
    share = run.rows / skeleton.recipe.train.effective_batch
    return Work(sum(flops.values()) * share, run.moved, run.launches)


def _bytes(module: nn.Module) -> int:
    return sum(weight.nbytes for weight in module.parameters())


def _outer(model: PreTrainedModel) -> dict[int, nn.Parameter]:
    """The weights of embedding and head, shared ones once."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {id(w): w for layer in layers if layer is not None for w in layer.parameters()}


def largest_module(model: PreTrainedModel) -> int:
    """Parameters of the largest module that has weights of its own."""
    return max(sum(w.numel() for w in part.parameters(recurse=False)) for part in model.modules())


def sizes_of(skeleton: Skeleton) -> Iterator[ModelSize]:
    """The student, then the teachers whose configuration is known."""
    places = {name: f"live, {one.placement}" for name, one in skeleton.live.items()}
    places |= dict.fromkeys(skeleton.job.cached, "cached")
    for name, model in {"student": skeleton.student, **skeleton.teachers}.items():
        is_student = model is skeleton.student
        yield ModelSize(
            name if is_student else f"teacher {name}",
            "trained" if is_student else places.get(name, "not used in training"),
            count_parameters(model),
            sum(weight.numel() for weight in _outer(model).values()),
            _bytes(model),
        )
