"""One micro-batch of a recipe's training without weights: its peak memory and its traffic."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.objective import ForwardOutputs
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.errors import ModelError, foreign_errors, one_line
from stlm_kd.estimate.simulation.skeleton import Skeleton
from stlm_kd.estimate.simulation.stand_ins import batch_of
from stlm_kd.estimate.simulation.trace import Peak, Trace
from stlm_kd.interventions import Plan
from stlm_kd.losses.chunked import accelerator_sizes
from stlm_kd.models import forward
from stlm_kd.models.forward import autocast
from stlm_kd.training.optimizer import trainable_parameters

_LOOKS = 1000  # steps at which scheduled terms are looked at, for the step with the most terms


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one micro-batch needs beside weights and optimizer state, in bytes.

    Attributes:
        rows: Its rows.
        activations: Alive when all models have run, before the losses: what the backward pass needs, and the
            teachers' outputs.
        peaks: The maximum, gradients included, during each set of the teachers' activities (a name with
            ``RUNNING`` or ``PROJECTING``), such as none.
        moved: Bytes read and written by all operations but matrix products.
        launches: Number of operations.
        sizes: Parameters of each trained weight, those of projections and gates too.
    """

    rows: int
    activations: int
    peaks: Mapping[frozenset[Hashable], Peak]
    moved: int
    launches: int
    sizes: tuple[int, ...]

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return sum(self.sizes)

    def peak_with(self, held: Mapping[Hashable, int]) -> tuple[Peak, int]:
        """The peak where so many bytes more are alive during each activity, and how many are then."""
        found = [
            (peak, sum(held.get(one, 0) for one in activities)) for activities, peak in self.peaks.items()
        ]
        return max(found, key=lambda one: one[0].num_bytes + one[1])

    @property
    def peak(self) -> int:
        """The peak without weights."""
        return self.peak_with({})[0].num_bytes


class _NotedStep(DistillationStep):
    """A step that says when its models have run."""

    noted: Callable[[], None]

    def ask(self, batch: AnyBatch, plans: Mapping[str, Plan]) -> ForwardOutputs:
        found = super().ask(batch, plans)
        self.noted()
        return found


def _not_counted(error: BaseException) -> ModelError:
    why = one_line(str(error))[:200]
    return ModelError(
        f"a model of the recipe cannot run without values, which counting needs: {why}; "
        "take models of a supported family, whose code does not depend on values"
    )


def _num_terms(step: DistillationStep, index: int) -> int:
    step.begin(index, _LOOKS)
    return len(step.terms)


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention as on accelerators, whose fused kernels have dropout and keep no attention maps."""
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def without_dropout(*args: Any, **kwargs: Any) -> Any:
        return own(*args, **{**kwargs, "dropout": 0.0})

    ALL_ATTENTION_FUNCTIONS["sdpa"] = without_dropout
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = own


@contextmanager
def _masks_without_storage(mode: FakeTensorMode) -> Iterator[None]:
    """Attention masks, whose size is the square of the length, have no values either."""
    own = forward.attention_mask

    def made(batch: Batch, model: PreTrainedModel) -> Tensor:
        with mode:
            return own(batch, model)

    forward.attention_mask = made
    try:
        yield
    finally:
        forward.attention_mask = own


def simulate(skeleton: Skeleton, *, on_cpu: bool = False, accumulates: bool | None = None) -> MicroBatch:
    """Run one micro-batch of the recipe's training, forward and backward.

    ``accumulates``: whether gradients of earlier micro-batches are there; default: as in the recipe.
    """
    recipe, train = skeleton.recipe, skeleton.recipe.train
    rows = train.micro_batch or train.effective_batch
    again = train.effective_batch > rows if accumulates is None else accumulates
    batch = batch_of(recipe, skeleton.vocabulary, rows, pairs=skeleton.job.pairs_rows)
    trace, seen = Trace(), []
    step = skeleton.step(trace.during, _NotedStep)
    assert isinstance(step, _NotedStep)
    step.noted = lambda: seen.append(trace.live)
    step.train()
    step.begin(max(range(0, _LOOKS, 10), key=lambda look: _num_terms(step, look)), _LOOKS)
    weights = list(trainable_parameters(step).values())
    with ExitStack() as stack:
        if not on_cpu:
            stack.enter_context(accelerator_sizes())
            stack.enter_context(_fused_attention())
        stack.enter_context(_masks_without_storage(skeleton.mode))
        stack.enter_context(foreign_errors(_not_counted))
        stack.enter_context(trace)
        if again:
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
        trace.watch_gradients(weights)
        before = trace.live
        with autocast(torch.device("cpu"), train.precision):
            output = step(batch)
        output.loss.backward()
        found = MicroBatch(
            rows=rows,
            activations=seen[0] - before,
            peaks=dict(trace.peaks),
            moved=trace.moved,
            launches=trace.launches,
            sizes=tuple(weight.numel() for weight in weights),
        )
    for weight in weights:
        weight.grad = None
    return found
