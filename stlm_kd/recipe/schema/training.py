"""The training and engine parts of a recipe."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from stlm_kd.recipe.schema.fields import (
    BelowOne,
    Count,
    Flag,
    NotNegative,
    Part,
    PathText,
    Positive,
    Rows,
    fault,
    show,
)
from stlm_kd.training.config import Offload, Precision, Schedule, TrainingConfig, Weights


class TrainingPart(Part):
    """A part whose fields include settings of a training, named as in ``TrainingConfig``."""

    @property
    def config(self) -> TrainingConfig:
        """The settings that this part has; the others have their defaults."""
        shared = type(self).model_fields.keys() & {field.name for field in fields(TrainingConfig)}
        return TrainingConfig(**{name: getattr(self, name) for name in shared})


class Train(TrainingPart):
    """Training of the student. Steps are optimizer steps; null disables an option.

    ``micro_batch`` null: same as ``effective_batch``. ``validate_every`` null: only at the end.
    ``checkpoint_every`` null: every tenth of the steps. Checkpoints are also written at each improvement with
    ``keep: best``, when interrupted, and at the end; the best and the newest ``keep_checkpoints`` (null: 2)
    stay on disk. ``warmup``: a fraction of the steps.
    ``bias_correction``: AdamW's bias correction of its moment estimates; BertAdam has none. ``keep``: by
    default ``best`` with validation data and ``validate_every``, else ``last``.
    """

    called: ClassVar[str] = "a key of train"
    one_of: ClassVar[tuple[str, ...]] = ("steps", "epochs")
    one_of_optional: ClassVar[bool] = True
    steps: Count | None = None
    epochs: Count | None = None
    effective_batch: Rows = 32
    micro_batch: Rows | None = None
    learning_rate: Positive = 5e-4
    schedule: Schedule = "cosine"
    warmup: BelowOne = 0.05
    weight_decay: NotNegative = 0.1
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    eps: Positive = 1e-8
    bias_correction: Flag = True
    clip: Positive | None = 1.0
    precision: Precision = "fp32"
    gradient_checkpointing: Flag = False
    validate_every: Count | None = None
    keep: Literal["best", "last"] = "last"
    patience: Count | None = None
    checkpoint_every: Count | None = None
    keep_checkpoints: Count | None = None
    log_every: Count = 10


def _stage(value: object) -> object:
    if type(value) is not int:  # True would be accepted as 1
        raise fault(f"{show(value)} found; expected one of 0, 1, 2, 3")
    return value


class DeepSpeed(Part):
    """DeepSpeed's ZeRO stage: partition nothing (0), optimizer state (1), gradients (2), weights too (3).

    ``offload``: what lies in CPU memory, where the optimizer step is then performed: optimizer state and fp32
    weights (from stage 1 on), or these and the model's parameters (stage 3).
    ``weights``: bf16 holds the weights of trainings with ``precision: bf16`` in bf16 and the fp32 ones, which
    are saved, with the optimizer (stages 2 and 3).
    ``config``: a JSON file with more of DeepSpeed's settings, such as bucket sizes; what the recipe decides
    is absent there, "auto" or equal.
    """

    called: ClassVar[str] = "a key of deepspeed"
    zero: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_stage)] = 2
    offload: Offload = "none"
    weights: Weights = "fp32"
    config: PathText | None = None


class Engine(Part):
    """The training backend; it changes speed and memory, and results only by rounding.

    ``vocabulary_loss``: compute logits for a chunk of tokens at a time, or for all at once.
    """

    called: ClassVar[str] = "a key of engine"
    deepspeed: DeepSpeed | None = None
    vocabulary_loss: Literal["chunked", "dense"] = "chunked"
