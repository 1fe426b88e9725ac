"""Inputs and outputs of the training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.training.checkpoint import Validation


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
        """Prepare step ``index`` (from 0) of ``steps``; only logged steps compute additional metrics."""

    def direct_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that ``forward`` uses other than by calling their module, such as a head's."""

    @property
    def measures(self) -> Sequence[str]:
        """Names of the metrics that this optimizer step may compute, the same in all processes."""

    def count(self, batch: AnyBatch) -> Mapping[str, int]:
        """Number of valid tokens by term, with the same terms for every batch of a step. Batch on the CPU."""

    def not_finite(self, batch: AnyBatch) -> list[str]:
        """Whose weights or outputs on a batch are NaN or infinite, as ``teacher NAME (its weights …)``."""

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

    needs_equal_forwards: bool
    """Whether all processes must call ``evaluate`` equally often."""

    def begin_step(self) -> None:
        """Reset the gradients."""

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        """Forward and backward on the device; after the last, gradients are summed over all processes."""

    def gradient_norm(self) -> Tensor:
        """The global Euclidean norm of the gradients, a scalar on the device; NaN or infinite propagate."""

    def gradients_not_finite(self) -> list[str]:
        """The parameters with NaN or infinite gradients."""

    def end_step(self, learning_rate: float) -> None:
        """Clip the gradients and update the weights."""

    def evaluate(self, batch: AnyBatch, denominators: dict[str, float]) -> PlainOutput:
        """One forward pass without gradients, in the module's mode."""

    def not_finite(self, batch: AnyBatch) -> list[str]:
        """The step's ``not_finite``, for its whole weights."""

    def model_tensors(self) -> dict[str, Tensor]:
        """On the main process, the whole trainable parameters and persistent buffers by name.

        Raises ``DivergedError`` if the parameters differ between the processes.
        """

    def load_model_tensors(self, tensors: Mapping[str, Tensor], *, place: Path) -> None:
        """Load ``model_tensors`` of any engine; ``CheckpointError``, naming ``place``, if they differ."""

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """On the main process, the full optimizer state as ``parameter name/key`` → tensor."""

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load the state from ``optimizer_tensors`` of any engine with any number of processes."""

    def finish(self) -> None:
        """Prepare to leave the whole weights in the module, at the end of a training without an error."""

    def close(self) -> None:
        """Restore the module to its state without an engine, and release it; processes do not wait here."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """The result of a training.

    Attributes:
        steps: Completed optimizer steps; fewer than configured after an early stop.
        tokens: Non-padding positions seen, over all processes.
        best_step: That of the lowest validation loss: 0 for the initial weights, None without validation.
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
