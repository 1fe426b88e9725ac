"""The settings of a training, the same for recipes, adaptations and fine-tunings. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16"]
"""``bf16`` runs forward passes under autocast; weights and optimizer stay in fp32."""
Offload = Literal["none", "optimizer", "parameters"]
Weights = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class DeepSpeedOptions:
    """Options of DeepSpeed beside its ZeRO stage; like that, they change speed and memory.

    Attributes:
        offload: What lies in CPU memory and not on the GPU: the optimizer's state and its fp32 weights, or
            these and the weights (ZeRO 3). The CPU performs the optimizer step.
        weights: Dtype of the module's weights in trainings with ``precision="bf16"``; ``bf16`` (ZeRO 2 and 3)
            leaves the fp32 ones, which are trained and saved, to the optimizer. Others keep fp32.
        settings: More of DeepSpeed's configuration, as in its JSON files, such as bucket sizes.
    """

    offload: Offload = "none"
    weights: Weights = "fp32"
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowScale:
    """Rows of a weight of the step module, and the multiplier of their learning rate; 0 leaves them as is."""

    weight: str
    rows: tuple[int, ...]
    pace: float


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Training settings.

    Attributes:
        steps: Total optimizer steps; None until ``epochs`` is converted to steps.
        learning_rate: Peak learning rate.
        epochs: Passes over the training data, if the number of steps is not given.
        effective_batch: Rows per optimizer step, over all processes.
        micro_batch: Maximum rows per forward pass and process; None for ``effective_batch``.
        schedule: Learning-rate schedule after the warm-up.
        warmup: Fraction of the steps with rising learning rate.
        weight_decay: Weight decay of matrices; norms, biases and vectors have none.
        betas: AdamW's betas.
        eps: AdamW's epsilon.
        bias_correction: Whether to correct the bias of AdamW's averages; False for BertAdam.
        clip: Maximum global gradient norm; None for no clipping.
        precision: Precision of forward passes.
        validate_every: Optimizer steps between validations, with one more at the end; None for the last only.
        keep: Which weights to keep: those with the lowest validation loss, or the last.
        patience: Stop early after this many validations without improvement; None for never.
        checkpoint_every: Optimizer steps between checkpoints; None for a tenth of all. One is also written on
            a signal, at the end and (with ``keep="best"``) at each improvement.
        keep_checkpoints: The number of newest checkpoints on disk, beside the best; None for two.
        log_every: Optimizer steps between logged ones.
        seed: Random seed of dropout and other draws from the global generators.
        zero: None for a single process or DDP. 0 to 3 for DeepSpeed, which replicates everything (0),
            partitions the optimizer state (1), also the gradients (2), and also the weights (3).
        deepspeed: Its other options.
        paced: Rows of weights with a learning-rate multiplier.

    >>> TrainingConfig(steps=100, learning_rate=1e-3, schedule="constant", warmup=0.1).learning_rate_at(50)
    0.001
    """

    steps: int | None = None
    learning_rate: float = 5e-4
    epochs: int | None = None
    effective_batch: int = 32
    micro_batch: int | None = None
    schedule: Schedule = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    bias_correction: bool = True
    clip: float | None = 1.0
    precision: Precision = "fp32"
    validate_every: int | None = None
    keep: Literal["best", "last"] = "last"
    patience: int | None = None
    checkpoint_every: int | None = None
    keep_checkpoints: int | None = None
    log_every: int = 10
    seed: int = 0
    zero: Literal[0, 1, 2, 3] | None = None
    deepspeed: DeepSpeedOptions = DeepSpeedOptions()
    paced: tuple[RowScale, ...] = ()

    @property
    def num_steps(self) -> int:
        """Total optimizer steps of a training that is ready to begin."""
        assert self.steps is not None
        return self.steps

    @property
    def has_bf16_weights(self) -> bool:
        """Whether the module's weights are bf16 copies of the optimizer's fp32 ones."""
        return self.deepspeed.weights == self.precision == "bf16"

    def with_steps(self, steps: int) -> TrainingConfig:
        """These settings for a number of steps, a tenth of them between checkpoints unless that is set."""
        return replace(self, steps=steps, checkpoint_every=self.checkpoint_every or math.ceil(steps / 10))

    def is_logged(self, step: int) -> bool:
        """Whether an optimizer step, counted from 1, is logged; the first and the last always are."""
        return step % self.log_every == 0 or step in (1, self.steps)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of optimizer step ``step``, counted from 0.

        It rises linearly over the first ``W = round(warmup * steps)`` steps, ``peak * (step + 1) / (W + 1)``,
        so that the first step has a positive rate and step ``W`` is the first at the peak. Then ``cosine``
        and ``linear`` fall towards 0, which they would reach at ``step == steps``; ``constant`` stays at the
        peak.

        >>> config = TrainingConfig(steps=4, learning_rate=1.0, schedule="linear", warmup=0.25)
        >>> [config.learning_rate_at(step) for step in range(4)]
        [0.5, 1.0, 0.6666666666666667, 0.33333333333333337]
        """
        peak, warmup_steps = self.learning_rate, round(self.warmup * self.num_steps)
        if step < warmup_steps:
            return peak * (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, self.num_steps - warmup_steps))
        if self.schedule == "cosine":
            return peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak * (1.0 - progress) if self.schedule == "linear" else peak
