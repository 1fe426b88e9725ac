"""Open the trackers of a run, on the main process only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from stlm_kd.distributed import process_rank
from stlm_kd.tracking import experiment
from stlm_kd.tracking.console import PER_TOKEN, open_progress
from stlm_kd.tracking.jsonl import JsonlTracker
from stlm_kd.tracking.metrics import Tracker, Trackers


def open_tracker(
    folder: Path,
    *,
    backends: Sequence[str] = (),
    run_name: str = "",
    stream: TextIO | None = None,
    unit: str = PER_TOKEN,
) -> Trackers:
    """Open progress on ``stream`` (default: stderr), ``folder/metrics.jsonl``, and the given backends.

    The backends are "tensorboard" and "wandb", where ``run_name`` (default: the folder's name) groups the
    stages. Returns empty trackers on all but the main process (``RANK`` in the environment).

    Raises:
        MissingResourceError: a backend's package is not installed.
    """
    if process_rank() > 0:
        return Trackers()
    trackers: list[Tracker] = [open_progress(stream, unit=unit), JsonlTracker(folder / "metrics.jsonl")]
    if "tensorboard" in backends:
        trackers.append(experiment.tensorboard(folder / "tensorboard"))
    if "wandb" in backends:
        trackers.append(experiment.wandb(folder / "wandb", run_name or folder.name))
    return Trackers(trackers)
