"""Open the trackers of a run, on the main process only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from stlm_kd.errors import did_you_mean
from stlm_kd.tracking import experiment
from stlm_kd.tracking.console import PER_TOKEN, open_progress
from stlm_kd.tracking.jsonl import JsonlTracker
from stlm_kd.tracking.metrics import Tracker, Trackers

BACKENDS = ("tensorboard", "wandb")


def open_tracker(
    folder: Path,
    *,
    backends: Sequence[str] = (),
    run_name: str = "",
    stream: TextIO | None = None,
    unit: str = PER_TOKEN,
) -> Trackers:
    """Open progress on ``stream`` (default: stderr), ``folder/metrics.jsonl``, and the given backends.

    Returns empty trackers on all but the main process (``RANK`` in the environment).

    Args:
        folder: Contains ``metrics.jsonl``, ``tensorboard/`` and ``wandb/``.
        backends: Names from ``BACKENDS``.
        run_name: Group of the stages in Weights & Biases; defaults to the folder's name.
        stream: Output stream of progress.
        unit: Unit of the loss on labels.

    Raises:
        MissingResourceError: a backend's package is not installed.
    """
    if os.environ.get("RANK", "0") != "0":
        return Trackers()
    trackers: list[Tracker] = [open_progress(stream, unit=unit), JsonlTracker(folder / "metrics.jsonl")]
    for name in backends:
        assert name in BACKENDS, f"{name} is not a tracking backend{did_you_mean(name, BACKENDS)}"
        if name == "tensorboard":
            trackers.append(experiment.tensorboard(folder / "tensorboard"))
        else:
            trackers.append(experiment.wandb(folder / "wandb", run_name or folder.name))
    return Trackers(trackers)
