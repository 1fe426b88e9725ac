"""The one training loop: ``fit`` turns a step module and batches into trained weights."""

from stlm_kd.checkpoint import Validation
from stlm_kd.engine.loop import fit
from stlm_kd.engine.pacing import PacedRows
from stlm_kd.engine.processes import current_device
from stlm_kd.engine.protocols import BatchSource, FitResult, FitSettings, StepOutput, TrainStep

__all__ = [
    "BatchSource",
    "FitResult",
    "FitSettings",
    "PacedRows",
    "StepOutput",
    "TrainStep",
    "Validation",
    "current_device",
    "fit",
]
