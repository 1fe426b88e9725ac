"""Train a step on batches that are at hand, with checkpoints and metrics in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.entries import batch_of
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.errors import UsageError
from stlm_kd.tracking.opening import open_tracker
from stlm_kd.training.config import DeepSpeedOptions, TrainingConfig
from stlm_kd.training.loop import fit
from stlm_kd.training.optimizer import trainable_parameters
from stlm_kd.training.protocols import FitResult

T = TypeVar("T")
Given = AnyBatch | Mapping[str, Tensor]


class _Cycle:
    """One optimizer step per batch, in order, again and again."""

    def __init__(self, batches: Sequence[AnyBatch]) -> None:
        self.batches = batches

    def step(self, index: int) -> list[AnyBatch]:
        return [self.batches[index % len(self.batches)]]


def train(
    step: DistillationStep,
    batches: Sequence[Given],
    config: TrainingConfig,
    *,
    folder: str | Path,
    validation: Sequence[Given] | None = None,
    resume: bool = True,
) -> FitResult:
    """Train a step's student in place; save it afterwards with its own ``save_pretrained``.

    Each batch is one optimizer step; they are used in order, and again from the first. ``effective_batch``
    and ``micro_batch`` of the configuration, which split a recipe's data, do not apply. Under a launcher such
    as torchrun each process passes its own share, of equally many batches.

    Args:
        step: The step to train, with its projections.
        batches: What the step takes: batches, or mappings such as a tokenizer's output for several texts.
        config: Settings; ``steps``, or ``epochs`` over the batches.
        folder: Receives ``checkpoints/`` and ``metrics.jsonl``; progress is printed to stderr.
        validation: Held-out batches, compared by the mean loss on labels, in nats per token.
        resume: Whether to resume from the folder's checkpoints of the same step, configuration and batches.

    Returns:
        Steps, tokens, seconds, and the validation losses.

    Raises:
        UsageError: No batch, neither steps nor epochs, or ``keep="best"`` or ``patience`` without validation.
        NonFiniteError: A loss or gradient is NaN or infinite; the weights are unchanged.
        CheckpointError: A checkpoint cannot be written or read, or is of another training.
        Interrupted, Preempted: Stopped by a signal, after saving a checkpoint.

    >>> import stlm_kd, tempfile, torch, transformers
    >>> student = transformers.LlamaForCausalLM(transformers.LlamaConfig(
    ...     vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    >>> step = stlm_kd.DistillationStep(student, [{"loss": "labels"}])
    >>> batches = [{"input_ids": torch.randint(0, 50, (4, 12))} for _ in range(3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = stlm_kd.train(step, batches, stlm_kd.TrainingConfig(epochs=2), folder=folder)
    >>> result.steps, result.tokens
    (6, 288)
    """
    if not batches:
        raise UsageError("batches: none given; expected at least one")
    steps = config.steps or (config.epochs or 0) * len(batches)
    if not steps:
        raise UsageError("config: neither steps nor epochs given; expected one of them")
    if validation is None and (config.keep == "best" or config.patience is not None):
        raise UsageError("validation: none given, but keep='best' and patience need held-out batches")
    own = [batch_of(batch, step.student) for batch in batches]
    held = None if validation is None else [batch_of(batch, step.student) for batch in validation]
    folder, settings = Path(folder), config.with_steps(steps)
    tracker = open_tracker(folder)
    try:
        return fit(
            step,
            _Cycle(own),
            settings,
            folder=folder,
            validation=None if held is None else lambda: held,
            tracker=tracker,
            resume=resume,
            fingerprint=_fingerprint(step, own, settings),
        )
    finally:
        tracker.close()


def _fingerprint(step: nn.Module, batches: Sequence[AnyBatch], settings: TrainingConfig) -> str:
    """SHA-256 (hex) of the trained shapes, the terms, the settings and the token ids of the first batch."""
    assert isinstance(step, DistillationStep)
    shapes = [(name, tuple(weight.shape)) for name, weight in trainable_parameters(step).items()]
    parts = (shapes, step.all_terms, replace(settings, zero=None, deepspeed=DeepSpeedOptions()), len(batches))
    digest = hashlib.sha256(repr(parts).encode())
    digest.update(batches[0].input_ids.cpu().numpy().tobytes())
    return digest.hexdigest()
