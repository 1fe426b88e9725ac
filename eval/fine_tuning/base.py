"""A fine-tuning job of a suite: task, settings and seed.

Such a suite returns ``FineTuneJob``s instead of scores. The caller fine-tunes a copy of the model for each,
with the common training loop, and lets the suite score it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Source = Literal["auto", "local", "hub"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Fine-tuning settings: AdamW, β (0.9, 0.999), gradient clipping at 1.

    Attributes:
        epochs: Over the drawn training examples.
        steps: Optimizer steps instead of epochs; None: use epochs.
        learning_rate: Its peak, followed by linear decay to 0.
        effective_batch: Examples per optimizer step.
        micro_batch: Maximum examples per forward pass; None: ``effective_batch``.
        warmup: Fraction of the steps with a rising learning rate.
        weight_decay: Applied to matrices.
        eps: AdamW's.
        bias_correction: Whether AdamW corrects the bias of its averages; BertAdam does not.
        precision: ``bf16`` runs the model under autocast, in training and in scoring.
    """

    epochs: int
    steps: int | None = None
    learning_rate: float = 2e-5
    effective_batch: int = 32
    micro_batch: int | None = None
    warmup: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    bias_correction: bool = True
    precision: Precision = "fp32"

    def with_given(
        self,
        *,
        epochs: int | None,
        steps: int | None,
        learning_rate: float | None,
        effective_batch: int | None,
        micro_batch: int | None,
        precision: Precision,
    ) -> Settings:
        """These settings with the given values replaced."""
        return replace(
            self,
            epochs=epochs or self.epochs,
            steps=steps,
            learning_rate=learning_rate or self.learning_rate,
            effective_batch=effective_batch or self.effective_batch,
            micro_batch=micro_batch,
            precision=precision,
        )


@dataclass(frozen=True, slots=True)
class FineTuneJob:
    """One fine-tuning.

    Attributes:
        suite: The suite.
        task: The suite's name of the task.
        seed: Seed of the new head, the drawn examples, their order and dropout.
        fraction: The fraction of training examples to draw; for text classification, the same for each class.
        context: Maximum tokens of an example; None: the suite's default, or the model's positions if fewer.
        source: Source of the examples.
        settings: How to train.
        stride: Tokens shared by adjacent windows, for suites that read long texts in windows.
    """

    suite: str
    task: str
    seed: int
    fraction: float
    context: int | None
    source: Source
    settings: Settings
    stride: int | None = None
