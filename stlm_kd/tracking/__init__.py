"""Training progress and metrics: lines or a live table on stderr, metrics.jsonl, TensorBoard, W&B."""

from stlm_kd.tracking.jsonl import read_metrics
from stlm_kd.tracking.metrics import StepMetrics, Tracker, Trackers, ValidationMetrics
from stlm_kd.tracking.opening import open_tracker

__all__ = ["StepMetrics", "Tracker", "Trackers", "ValidationMetrics", "open_tracker", "read_metrics"]
