"""The metrics as TensorBoard scalars."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stlm_kd.tracking.metrics import StepMetrics, ValidationMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """Writes ``train/…``, ``validation/…`` and additional metrics, one folder per stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stage = ""
        self._after = 0
        self._writer: SummaryWriter | None = None

    def stage(self, name: str) -> None:
        """Write the following scalars to a folder of this name."""
        self.close()
        self._stage, self._after = "-".join(name.replace("/", " ").split()), 0

    def rewind(self, step: int) -> None:
        """Let TensorBoard hide entries after ``step``."""
        self.close()
        self._after = step

    def step(self, metrics: StepMetrics) -> None:
        """Write the loss, its terms, the learning rate, the gradient norm, the throughput and all metrics."""
        self._scalars("train", metrics.step, {"loss": metrics.loss, **metrics.losses})
        self._scalars(
            "optimizer",
            metrics.step,
            {"learning_rate": metrics.learning_rate, "grad_norm": metrics.grad_norm},
        )
        self._scalars("speed", metrics.step, {"tokens_per_second": metrics.tokens_per_second})
        for name, value in metrics.measures.items():
            self._open().add_scalar(name, value, metrics.step)

    def validation(self, metrics: ValidationMetrics) -> None:
        """Write each term."""
        self._scalars("validation", metrics.step, dict(metrics.losses))

    def note(self, message: str) -> None:
        """Do nothing: notes are not scalars."""

    def close(self) -> None:
        """Write pending events."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalars(self, group: str, step: int, values: dict[str, float]) -> None:
        writer = self._open()
        for name, value in values.items():
            writer.add_scalar(f"{group}/{name}", value, step)

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # protobuf and NumPy inside tensorboard
                from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self.folder / self._stage), purge_step=self._after + 1 if self._after else None
            )
        return self._writer
