"""The training loop: ``loop.fit`` trains a step module on batches with a ``TrainingConfig``."""

from stlm_kd.training.config import RowScale, TrainingConfig

__all__ = ["RowScale", "TrainingConfig"]
