"""A fine-tuning that a suite asks for: which task, how to train, with which seed.

The function of such a suite returns ``FineTuneJob``s in place of scores. The caller fine-tunes a copy of the
model for each, through the one training loop, and lets the suite score it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Source = Literal["auto", "local", "hub"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model is fine-tuned: by AdamW, β (0.9, 0.999), with gradients clipped at 1.

    Attributes:
        epochs: Over the training examples that are drawn.
        steps: Optimizer steps in place of the epochs; None: the epochs.
        learning_rate: Its peak, from which it falls linearly to 0.
        effective_batch: Examples of an optimizer step.
        micro_batch: Examples of a forward pass at most; None: as many as of a step.
        warmup: Share of the steps in which the learning rate rises.
        weight_decay: Of matrices.
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
        """These, with what is given in place of their own."""
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
        suite: That asks for it.
        task: What the suite calls the task.
        seed: Of the fresh head, the drawn examples, their order and dropout.
        fraction: The share of the training examples that is drawn; of classes of texts, of each the same.
        context: Tokens of an example at most; None: the suite's own, or as many as the model has positions
            for if that is fewer.
        source: Where the examples are from.
        settings: How to train.
        stride: Tokens that neighbouring windows of a long text share, where a suite reads it in windows.
    """

    suite: str
    task: str
    seed: int
    fraction: float
    context: int | None
    source: Source
    settings: Settings
    stride: int | None = None
