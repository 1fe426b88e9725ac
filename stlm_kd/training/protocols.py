"""Inputs and outputs of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.training.checkpoint import Validation
from stlm_kd.training.optimizer import Schedule
from stlm_kd.training.row_learning_rates import RowScale


class MeanMetric(NamedTuple):
    """A mean as total and count, detached scalars that can be summed over micro-batches.

    Its name is ``group/name``; metrics of a group share a panel. A tuple, since engines look for tensors in
    tuples and dictionaries.
    """

    total: Tensor
    number: Tensor


@dataclass(frozen=True, slots=True)
class StepOutput:
    """The outputs of one micro-batch, not reduced across ranks.

    Attributes:
        loss: Scalar to call ``backward`` on: Σ over the student's terms of weight · sum / denominator. The
            loss of a gate contributes its gradient but the value 0.
        sums: By term, the sum over its tokens, in nats, detached, unweighted.
        measures: Additional metrics, on logged steps.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    measures: dict[str, MeanMetric] = field(default_factory=dict)


PlainOutput = tuple[Tensor, dict[str, Tensor], dict[str, MeanMetric]]
"""Loss, sums and measures of a ``StepOutput``."""


class TrainStep(Protocol):
    """A ``torch.nn.Module`` with all trained parameters; ``forward`` computes the loss of one micro-batch.

    Parameters with ``requires_grad`` are trained, clipped, saved and resumed. In evaluation mode ``count``
    and ``sums`` also contain "labels", in nats.
    """

    def begin(self, index: int, steps: int, *, is_logged: bool) -> None:
        """Prepare optimizer step ``index`` (from 0) of ``steps``, which determines scheduled values.

        Additional metrics are computed on logged steps only.
        """

    @property
    def measures(self) -> Sequence[str]:
        """Names of the metrics that this optimizer step may compute, the same in all processes."""

    def count(self, batch: AnyBatch) -> Mapping[str, int]:
        """Number of valid tokens by term, with the same terms for every batch of a step. Batch on the CPU."""

    def __call__(self, batch: AnyBatch, denominators: dict[str, float]) -> StepOutput:
        """One forward pass; divides each term's sum by its value in ``denominators``, never 0."""


class BatchSource(Protocol):
    """Training batches as a pure function of the step index, so that resuming needs no state."""

    def step(self, index: int) -> Sequence[AnyBatch]:
        """The micro-batches of this process in optimizer step ``index`` (from 0); the same number on each."""


class Engine(Protocol):
    """Computes gradients and updates the weights of a step module, in all processes together.

    One optimizer step is ``begin_step``, ``accumulate`` for each micro-batch, ``gradient_norm`` and
    ``end_step``. All processes must call every method.
    """

    def begin_step(self) -> None:
        """Reset the gradients."""

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        """One forward and backward pass; the batch is on the device.

        After the last micro-batch the gradients are summed over all micro-batches and processes.
        """

    def gradient_norm(self) -> Tensor:
        """The global Euclidean norm of the gradients, a scalar on the device; NaN or infinite propagate."""

    def gradients_not_finite(self) -> list[str]:
        """The parameters with NaN or infinite gradients."""

    def end_step(self, learning_rate: float) -> None:
        """Clip the gradients and update the weights."""

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """On the main process, the full optimizer state as ``parameter name/key`` → tensor."""

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state from ``optimizer_tensors`` of any engine with any number of processes."""

    def weights_were_loaded(self) -> None:
        """Synchronise the engine after new weights were copied into the module's tensors."""

    def close(self) -> None:
        """Restore the module to its state without an engine, and release it."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """Training settings.

    Attributes:
        steps: Total optimizer steps.
        learning_rate: Peak learning rate.
        schedule: Learning-rate schedule after the warm-up.
        warmup: Fraction of the steps with rising learning rate.
        weight_decay: Weight decay of matrices; norms, biases and vectors have none.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        bias_correction: Whether to correct the bias of AdamW's averages; False for BertAdam.
        clip: Maximum global gradient norm; None for no clipping.
        precision: "bf16" runs forward passes under autocast; weights and optimizer stay in fp32.
        validate_every: Optimizer steps between validations, with one more at the end; None for the last only.
        keep: Which weights to keep: those with the lowest validation loss, or the last.
        patience: Stop early after this many validations without improvement; None for never.
        checkpoint_every: Optimizer steps between checkpoints. One is also written on a signal, at the end and
            (with ``keep="best"``) at each improvement.
        log_every: Optimizer steps between logged ones.
        seed: Random seed of dropout and other draws from the global generators.
        zero: None for a single process or DDP. 0, 1 or 2 for DeepSpeed, which replicates everything (0),
            partitions the optimizer state (1) and also the gradients (2).
        paced: Rows of weights with a learning-rate multiplier.
    """

    steps: int
    learning_rate: float
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    bias_correction: bool = True
    clip: float | None = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    validate_every: int | None = None
    keep: Literal["best", "last"] = "last"
    patience: int | None = None
    checkpoint_every: int | None = None
    log_every: int = 10
    seed: int = 0
    zero: Literal[0, 1, 2] | None = None
    paced: tuple[RowScale, ...] = ()

    def is_logged(self, step: int) -> bool:
        """Whether an optimizer step, counted from 1, is logged; the first and the last always are."""
        return step % self.log_every == 0 or step in (1, self.steps)


@dataclass(frozen=True, slots=True)
class FitResult:
    """The result of a training.

    Attributes:
        steps: Completed optimizer steps; fewer than configured after an early stop.
        tokens: Non-padding positions seen, over all processes.
        best_step: The step with the lowest validation loss, 0 for the initial weights; None without
            validation.
        best_loss: The lowest validation loss, "labels" in nats per token.
        validation_history: All validations.
        seconds: Total training time, without the time between interruption and resumption.
        stopped: Why the training ended.
    """

    steps: int
    tokens: int
    best_step: int | None
    best_loss: float | None
    validation_history: tuple[Validation, ...]
    seconds: float
    stopped: Literal["done", "early-stop"]
