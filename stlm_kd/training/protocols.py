"""What the one training loop is given, and what it gives back."""

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
    """A mean by its parts, scalars without a gradient: means of several micro-batches cannot be added up.

    It is named ``group/name``; what one group holds is drawn in one panel. A tuple, since engines look for
    tensors in tuples and dictionaries.
    """

    total: Tensor
    number: Tensor


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one micro-batch gives; nothing in it is reduced across ranks.

    Attributes:
        loss: Scalar to call ``backward`` on: Σ over the student's terms of weight · sum / denominator. What
            trains a gate beside it has a gradient there and the value 0.
        sums: By term, the sum over its tokens, in nats, detached, unweighted.
        measures: What was measured beside the terms, of a step that is logged.
    """

    loss: Tensor
    sums: dict[str, Tensor]
    measures: dict[str, MeanMetric] = field(default_factory=dict)


PlainOutput = tuple[Tensor, dict[str, Tensor], dict[str, MeanMetric]]
"""Loss, sums and measures of a ``StepOutput``."""


class TrainStep(Protocol):
    """A ``torch.nn.Module`` that holds all that is trained; one ``forward`` is a micro-batch's whole work.

    What has ``requires_grad`` is trained, clipped, saved and resumed. In evaluation mode ``count`` and
    ``sums`` hold "labels" as well, in nats.
    """

    def begin(self, index: int, steps: int, *, is_logged: bool) -> None:
        """Optimizer step ``index`` (from 0) of ``steps`` is next, which schedules follow.

        What is measured beside the loss is wanted of those that are logged only.
        """

    @property
    def measures(self) -> Sequence[str]:
        """What this optimizer step may measure beside its terms, the same names in all processes."""

    def count(self, batch: AnyBatch) -> Mapping[str, int]:
        """By term, its valid tokens; the same terms for every batch of a step. The batch lies on the CPU."""

    def __call__(self, batch: AnyBatch, denominators: dict[str, float]) -> StepOutput:
        """One forward; ``denominators`` has what to divide each term's sum by, never 0."""


class BatchSource(Protocol):
    """Training batches as a pure function of the step's number, so that resuming needs no state."""

    def step(self, index: int) -> Sequence[AnyBatch]:
        """The micro-batches of optimizer step ``index`` (from 0) for this process; as many on each."""


class Engine(Protocol):
    """What moves the weights of a step module, in all processes together.

    One optimizer step is ``begin_step``, ``accumulate`` for each micro-batch, ``gradient_norm`` and
    ``end_step``. Every method is called by all processes.
    """

    def begin_step(self) -> None:
        """Forget the gradients of the step before."""

    def accumulate(self, batch: AnyBatch, denominators: dict[str, float], *, is_last: bool) -> PlainOutput:
        """One forward and backward, and what came of it; the batch lies on the device.

        After the last one the gradients are the sums over all micro-batches and processes.
        """

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of all gradients together, a scalar on the device; not finite if any is not."""

    def gradients_not_finite(self) -> list[str]:
        """The parameters with a NaN or an infinity in their gradients."""

    def end_step(self, learning_rate: float) -> None:
        """Clip, then let the optimizer move the weights."""

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """On the first process, the whole optimizer state as ``parameter name/key`` → tensor."""

    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``optimizer_tensors`` of any engine with any number of processes gave."""

    def weights_were_loaded(self) -> None:
        """Other weights were copied into the module's tensors: take them over."""

    def close(self) -> None:
        """Leave the module as it would be without an engine, and let go of it."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How to train.

    Attributes:
        steps: Optimizer steps in all.
        learning_rate: The schedule's peak.
        schedule: How it falls after the warm-up.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: For matrices; norms, biases and vectors have none.
        betas: AdamW's.
        eps: AdamW's.
        bias_correction: Whether AdamW corrects the bias of its averages; BertAdam does not.
        clip: Largest Euclidean norm of all gradients together; None: not clipped.
        precision: "bf16" runs the forward passes under autocast; weights and optimizer stay in fp32.
        validate_every: Optimizer steps between validations, and once at the end; None: at the end only.
        keep: Whose weights the module holds at the end: of the least validation loss, or the last.
        patience: Stop early after so many validations without improvement; None: never.
        checkpoint_every: Optimizer steps between checkpoints. One is also written on a signal, at the end and
            (to keep the best) with each improvement.
        log_every: Optimizer steps between logged ones.
        seed: Of dropout and whatever else draws from the global generators.
        zero: None: one process by itself, or DDP over several. 0, 1 or 2: DeepSpeed, which keeps everything
            in every process, or divides the optimizer's state (1) and the gradients as well (2).
        paced: Rows of weights with learning rates of their own.
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
        """Whether an optimizer step, counted from 1, is logged: the first and the last one always are."""
        return step % self.log_every == 0 or step in (1, self.steps)


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came of it.

    Attributes:
        steps: Optimizer steps done, fewer than asked for after an early stop.
        tokens: Positions without padding seen, over all processes.
        best_step: The step of the least validation loss, 0 being the state before the first step; None
            without validation.
        best_loss: That loss, "labels" in nats per token.
        validation_history: Every validation.
        seconds: Time spent, over all interruptions and without the time between them.
        stopped: Why it ended.
    """

    steps: int
    tokens: int
    best_step: int | None
    best_loss: float | None
    validation_history: tuple[Validation, ...]
    seconds: float
    stopped: Literal["done", "early-stop"]
