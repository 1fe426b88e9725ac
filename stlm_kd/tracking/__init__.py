"""Training progress and metrics: lines or a live table on stderr, metrics.jsonl, TensorBoard, W&B."""

from stlm_kd.tracking.console import LiveProgress, PlainProgress, open_progress
from stlm_kd.tracking.jsonl import JsonlTracker, read_metrics
from stlm_kd.tracking.metrics import StepMetrics, Tracker, Trackers, ValidationMetrics
from stlm_kd.tracking.opening import open_tracker

__all__ = [
    "JsonlTracker",
    "LiveProgress",
    "PlainProgress",
    "StepMetrics",
    "Tracker",
    "Trackers",
    "ValidationMetrics",
    "open_progress",
    "open_tracker",
    "read_metrics",
]
