"""The training loop: ``fit`` trains a step module on batches."""

from stlm_kd.training.checkpoint import Validation
from stlm_kd.training.loop import fit
from stlm_kd.training.processes import current_device
from stlm_kd.training.protocols import BatchSource, FitResult, FitSettings, StepOutput, TrainStep
from stlm_kd.training.row_learning_rates import RowScale

__all__ = [
    "BatchSource",
    "FitResult",
    "FitSettings",
    "RowScale",
    "StepOutput",
    "TrainStep",
    "Validation",
    "current_device",
    "fit",
]
