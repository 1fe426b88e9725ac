"""The trainings of the grid: the module and batches of a cell, and the same in a bare loop of PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distributed import launched_processes, process_rank
from stlm_kd.losses import MAP_LOSSES
from stlm_kd.models.attention_maps import install_maps
from stlm_kd.pipeline.builders.objective import projections_of, terms_of
from stlm_kd.teachers.combination.gate import Gate
from stlm_kd.teachers.combination.mixture import Combination
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from tests.support.engine_pico import Memory
from tests.support.grid import EFFECTIVE_BATCH, OBJECTIVES, Cell, recipe_of
from tests.support.interchange_steps import VOCABULARY, Kind, model_of, sources_of, stream

KINDS: dict[str, Kind] = {"clm": "packed", "mlm": "masked", "classification": "examples"}
TEACHERS = {"a": (4, 24), "b": (3, 16)}
"""Layers and width."""
STEPS, RATE, CLIP = 3, 0.1, 0.5
HUGE = 1e16
"""AdamW with this epsilon, learning rate and no first moment takes the steps of SGD."""
OF_ADAMW = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0}


@dataclass(frozen=True)
class Curve:
    """What a training came to: each step's terms, loss and gradient norm, and the last weights."""

    losses: list[dict[str, float]]
    weights: dict[str, Tensor]


def dtype_of(cell: Cell) -> torch.dtype:
    """DeepSpeed takes float32 alone."""
    return torch.float64 if cell.zero is None else torch.float32


def step_of(cell: Cell, dtype: torch.dtype) -> DistillationStep:
    """The module that a cell trains, made of its recipe by the builders of recipes."""
    recipe, kind = recipe_of(cell), KINDS[cell.task]
    student = model_of(kind, 2, 16).to(dtype)
    teachers: dict[str, PreTrainedModel] = {
        one.name: model_of(kind, *TEACHERS[one.name]).to(dtype) for one in recipe.teachers
    }
    configs = {name: model.config for name, model in teachers.items()}
    terms = terms_of(recipe, student.config, configs)
    for term in terms:
        if term.loss in MAP_LOSSES:
            install_maps(teachers[str(term.teacher)], frozenset(layer for _, layer in term.pairs))
    exchanges = any(term.intervention is not None for term in terms)
    gate = Gate(16, list(teachers)) if recipe.combine.how == "learned" else None
    step = DistillationStep(
        student,
        terms,
        teachers={
            one.name: LiveTeacher(
                teachers[one.name],
                None if kind == "examples" else VOCABULARY,
                name=one.name,
                placement=one.placement,
            )
            for one in recipe.teachers
        },
        combination=Combination(recipe.combine.how),
        projections=projections_of(recipe, terms, student.config, configs, seed=0) if teachers else None,
        vocabulary_loss=recipe.engine.vocabulary_loss,
        supplies=sources_of(kind) if exchanges else None,
        gate=gate,
    )
    return step.to(dtype).train()


@dataclass
class Batches:
    """Three steps: the first of an epoch, its last, which has fewer rows, and the first of the next."""

    cell: Cell
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        pairs = any(entry["loss"] == "diito" for entry in OBJECTIVES[self.cell.objectives])
        self._stream = stream(
            KINDS[self.cell.task], micro=self.micro_batch, effective=EFFECTIVE_BATCH, rank=self.rank,
            world_size=self.world_size, pairs=pairs,
        )  # fmt: skip
        self.steps_per_epoch = self._stream.steps_per_epoch
        assert self._stream.rows_per_epoch % EFFECTIVE_BATCH

    def step(self, index: int) -> list[AnyBatch]:
        return [*self._stream.step((0, self.steps_per_epoch - 1, self.steps_per_epoch)[index])]


def trained(cell: Cell, folder: Path, *, shows_head: bool = True) -> Curve:
    """The cell's training by ``fit``. Without ``shows_head`` the engine is not told of the head."""
    step = step_of(cell, dtype_of(cell))
    if not shows_head:
        step.direct_parameters = list  # type: ignore[method-assign]  # the mistake
    memory = Memory()
    settings = TrainingConfig(
        STEPS, RATE, schedule="constant", warmup=0.0, weight_decay=0.0, clip=CLIP, log_every=1,
        checkpoint_every=STEPS, zero=cell.zero,
    )  # fmt: skip
    if cell.optimizer == "sgd":
        settings = replace(settings, learning_rate=RATE * HUGE, betas=(0.0, 0.95), eps=HUGE)
    else:
        settings = replace(settings, learning_rate=1e-2)
    fit(
        step,
        Batches(cell, cell.micro_batch, process_rank(), launched_processes()),
        settings,
        folder=folder,
        validation=None,
        tracker=memory,
        resume=False,
        fingerprint=str(cell),
    )
    losses = [{**one.losses, "loss": one.loss, "gradient norm": one.grad_norm} for one in memory.steps]
    return Curve(losses, weights_of(step))


def expected(cell: Cell) -> Curve:
    """The same by one process in a bare loop, in large batches, with PyTorch's own optimizers."""
    return _bare(replace(cell, processes=1, zero=None, accumulation=1, placement="replicate"), dtype_of(cell))


@cache
def _bare(cell: Cell, dtype: torch.dtype) -> Curve:
    step, batches, losses = step_of(cell, dtype), Batches(cell, EFFECTIVE_BATCH), []
    weights = [weight for weight in step.parameters() if weight.requires_grad]
    optimizer = (
        torch.optim.SGD(weights, lr=RATE)
        if cell.optimizer == "sgd"
        else torch.optim.AdamW(weights, **OF_ADAMW)  # type: ignore[arg-type]  # of several types
    )
    for index in range(STEPS):
        step.begin(index, STEPS)
        rows = batches.step(index)
        each = [step.count(batch) for batch in rows]
        counts = {name: float(sum(count[name] for count in each)) for name in each[0]}
        optimizer.zero_grad()
        found = dict.fromkeys([*counts, "loss"], 0.0)
        for batch in rows:
            output = step(batch, counts)
            output.loss.backward()
            found["loss"] += output.loss.item()
            for name, total in output.sums.items():
                found[name] += float(total) / counts[name]
        norm = torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        losses.append({**found, "gradient norm": norm.item()})
    return Curve(losses, weights_of(step))


def weights_of(step: DistillationStep) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in step.named_parameters()}


def apart(found: Curve, other: Curve) -> tuple[float, float]:
    """The largest relative difference of the losses, and of the weights relative to a tensor's largest."""
    assert [one.keys() for one in found.losses] == [one.keys() for one in other.losses]
    assert found.weights.keys() == other.weights.keys()
    losses = [
        abs(ours[name] - theirs[name]) / max(abs(theirs[name]), 1e-3)
        for ours, theirs in zip(found.losses, other.losses, strict=True)
        for name in theirs
    ]
    weights = [
        float((found.weights[name] - weight).abs().max() / weight.abs().max().clamp(min=1e-3))
        for name, weight in other.weights.items()
    ]
    return max(losses), max(weights)
