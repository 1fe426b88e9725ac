"""Which trackers listen to a run, on which process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from stlm_kd.errors import did_you_mean
from stlm_kd.tracking.console import PER_TOKEN, open_progress
from stlm_kd.tracking.jsonl import JsonlTracker
from stlm_kd.tracking.metrics import Tracker, Trackers
from stlm_kd.tracking.tensorboard import TensorBoardTracker
from stlm_kd.tracking.wandb import WandbTracker

BACKENDS = ("tensorboard", "wandb")


def open_tracker(
    folder: Path,
    *,
    backends: Sequence[str] = (),
    run_name: str = "",
    stream: TextIO | None = None,
    unit: str = PER_TOKEN,
) -> Trackers:
    """Progress on ``stream`` (stderr unless given), ``folder/metrics.jsonl``, and the backends asked for.

    On every process but the first (``RANK`` in the environment) it says and writes nothing.

    Args:
        folder: Holds ``metrics.jsonl``, ``tensorboard/`` and ``wandb/``.
        backends: Of ``BACKENDS``.
        run_name: What Weights & Biases groups the stages by; the folder's name unless given.
        stream: For tests and for other front ends.
        unit: Of the loss on labels.

    Raises:
        MissingResourceError: a backend's package is not installed.
    """
    if os.environ.get("RANK", "0") != "0":
        return Trackers()
    trackers: list[Tracker] = [open_progress(stream, unit=unit), JsonlTracker(folder / "metrics.jsonl")]
    for name in backends:
        assert name in BACKENDS, f"{name} is not a tracking backend{did_you_mean(name, BACKENDS)}"
        if name == "tensorboard":
            trackers.append(TensorBoardTracker(folder / "tensorboard"))
        else:
            trackers.append(WandbTracker(folder / "wandb", run_name or folder.name))
    return Trackers(trackers)
