"""Metrics in TensorBoard and Weights & Biases through accelerate's trackers, one of them for each stage."""

from __future__ import annotations

import importlib
import threading
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.errors import MissingResourceError
from stlm_kd.tracking.metrics import StepMetrics, Tracker, ValidationMetrics

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker


class ExperimentTracker(Tracker):
    """Logs ``train/…``, ``validation/…`` and additional metrics at their optimizer step.

    Args:
        create: ``create(stage, step)`` gives the tracker of a stage that begins or resumes after ``step``.
            It is started with the first metrics, when the processes of a training have found each other.
    """

    def __init__(self, create: Callable[[str, int], GeneralTracker]) -> None:
        self._create = create
        self._stage, self._after = "", 0
        self._tracker: GeneralTracker | None = None

    def stage(self, name: str) -> None:
        self.close()
        self._stage, self._after = name, 0

    def rewind(self, step: int) -> None:
        self.close()
        self._after = step

    def step(self, metrics: StepMetrics) -> None:
        values = {
            "train/loss": metrics.loss,
            **{f"train/{name}": value for name, value in metrics.losses.items()},
            "optimizer/learning_rate": metrics.learning_rate,
            "optimizer/grad_norm": metrics.grad_norm,
            "speed/tokens_per_second": metrics.tokens_per_second,
            **metrics.measures,
        }
        self._log(values, metrics.step)

    def validation(self, metrics: ValidationMetrics) -> None:
        values = {f"validation/{name}": value for name, value in metrics.losses.items()}
        self._log(values, metrics.step)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._tracker is None:
            from accelerate import PartialState

            PartialState()  # accelerate's trackers log only where it is known
            self._tracker = self._create(self._stage, self._after)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # protobuf and NumPy inside tensorboard
                self._tracker.start()
        self._tracker.log(values, step=step)


def tensorboard(folder: Path) -> ExperimentTracker:
    """Scalars below ``folder``, in one folder for each stage; a resumed one hides entries after its step."""

    def create(stage: str, after: int) -> GeneralTracker:
        from accelerate.tracking import TensorBoardTracker

        _leave_errors_to_callers()
        name = "-".join(stage.replace("/", " ").split())
        return TensorBoardTracker(name, folder, purge_step=after + 1 if after else None)

    return ExperimentTracker(create)


@cache
def _leave_errors_to_callers() -> None:
    """Print no traceback of tensorboard's writing thread, whose errors its next call raises again."""
    usual = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if type(raised.thread).__name__ != "_AsyncWriterThread":
            usual(raised)

    threading.excepthook = hook


def require_wandb() -> None:
    """Raise MissingResourceError if the package ``wandb`` is not installed."""
    try:
        importlib.import_module("wandb")
    except ImportError as error:
        raise MissingResourceError(
            "tracking: wandb was asked for, but its package is not installed; "
            "pip install 'stlm-kd[wandb]', or take wandb out of tracking"
        ) from error


def wandb(folder: Path, run_name: str) -> ExperimentTracker:
    """One Weights & Biases run for each stage, in the group ``run_name``; a resumed stage is a new run."""
    require_wandb()

    def create(stage: str, after: int) -> GeneralTracker:
        from accelerate.tracking import WandBTracker

        folder.mkdir(parents=True, exist_ok=True)
        return WandBTracker("stlm-kd", name=stage, group=run_name, dir=str(folder), reinit="finish_previous")

    return ExperimentTracker(create)
