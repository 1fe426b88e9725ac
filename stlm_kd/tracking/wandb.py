"""Metrics in Weights & Biases, if its package is installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, cast

from stlm_kd.errors import MissingResourceError
from stlm_kd.tracking.metrics import StepMetrics, ValidationMetrics


class _Run(Protocol):
    def log(self, data: dict[str, float]) -> None: ...
    def finish(self) -> None: ...


class _Wandb(Protocol):
    def init(self, *, project: str, name: str, group: str, dir: str, reinit: str) -> _Run: ...


class WandbTracker:
    """One Weights & Biases run per stage, grouped by the run's name.

    Args:
        folder: Folder of its files.
        run_name: Name of the group.

    Raises:
        MissingResourceError: the package ``wandb`` is not installed.
    """

    def __init__(self, folder: Path, run_name: str) -> None:
        self.folder = folder
        self.run_name = run_name
        self._stage = run_name
        self._run: _Run | None = None
        try:
            self._wandb = cast(_Wandb, importlib.import_module("wandb"))
        except ImportError as error:
            raise MissingResourceError(
                "tracking: wandb was asked for, but its package is not installed; "
                "pip install 'stlm-kd[wandb]', or take wandb out of tracking"
            ) from error

    def stage(self, name: str) -> None:
        """Write the following metrics to a run of this name."""
        self.close()
        self._stage = name

    def rewind(self, step: int) -> None:
        """Do nothing: a resumed stage is a new run in the same group."""

    def step(self, metrics: StepMetrics) -> None:
        """Log the loss, its terms, the learning rate, the gradient norm, the throughput and all metrics."""
        self._open().log(
            {
                "step": metrics.step,
                "train/loss": metrics.loss,
                **{f"train/{name}": value for name, value in metrics.losses.items()},
                "optimizer/learning_rate": metrics.learning_rate,
                "optimizer/grad_norm": metrics.grad_norm,
                "speed/tokens_per_second": metrics.tokens_per_second,
                **metrics.measures,
            }
        )

    def validation(self, metrics: ValidationMetrics) -> None:
        """Log each term."""
        values = {f"validation/{name}": value for name, value in metrics.losses.items()}
        self._open().log({"step": metrics.step, **values})

    def note(self, message: str) -> None:
        """Do nothing: notes are not metrics."""

    def close(self) -> None:
        """End the stage's run."""
        if self._run is not None:
            self._run.finish()
            self._run = None

    def _open(self) -> _Run:
        if self._run is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._run = self._wandb.init(
                project="stlm-kd",
                name=self._stage,
                group=self.run_name,
                dir=str(self.folder),
                reinit="finish_previous",
            )
        return self._run
