"""The processes that train together, and the numbers that they agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)
from torch import Tensor

from stlm_kd.errors import CheckpointError, EnvironmentFault


def current_device() -> torch.device:
    """Where ``fit`` trains in this process: its own GPU, MPS, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Processes:
    """Accelerate, set up so that it divides, casts and skips nothing by itself.

    Accumulation and normalisation are the loop's own work, and mixed precision is one ``autocast``, so that
    several trainings of different precision can follow each other in one process: Accelerate's state is
    shared by the whole process and refuses to change its precision.

    Raises:
        EnvironmentFault: more processes were launched than Accelerate sees.
    """

    def __init__(self) -> None:
        on_cpu = current_device().type == "cpu"
        distributed = DistributedDataParallelKwargs(find_unused_parameters=True)
        launched = int(os.environ.get("WORLD_SIZE", "1"))
        # Without a named backend several CPU processes may pass for one; with one, a single process fails.
        needs_backend = on_cpu and launched > 1
        handlers = [distributed, InitProcessGroupKwargs(backend="gloo")] if needs_backend else [distributed]
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision="no",
            # The plugin, not the number: an environment variable would override the number.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            kwargs_handlers=handlers,
        )
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_first: bool = self.rank == 0
        if self.count != launched:
            raise EnvironmentFault(
                f"WORLD_SIZE: {launched} processes were launched, but they are {self.count} for Accelerate; "
                "launch with torchrun, which sets RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
            )

    @property
    def float_type(self) -> torch.dtype:
        """What sums are kept in: float64, or float32 on MPS, which has no other."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device, without waiting for it."""
        if self.count == 1:
            return values
        total = self.accelerator.reduce(values, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """The sums over all processes of some numbers, exact for whole ones."""
        if self.count == 1:
            return [float(value) for value in values]
        total: list[float] = self.sum(
            torch.tensor(values, dtype=self.float_type, device=self.device)
        ).tolist()
        return total

    def all_names(self, names: Sequence[str]) -> list[str]:
        """The names that any process has, sorted."""
        return sorted(set(gather_object(list(names)) if self.count > 1 else names))

    def on_first(self, work: Callable[[], int]) -> int:
        """Run ``work`` on the first process alone and give its number to all; they fail together.

        Raises:
            CheckpointError: the first process raised it.
        """
        error: CheckpointError | None = None
        number = 0
        if self.is_first:
            try:
                number = work()
            except CheckpointError as raised:
                error = raised
        failed, agreed = self.sum_numbers([float(error is not None), float(number)])
        if error is not None:
            raise error
        if failed:
            raise CheckpointError("the first process could not use its checkpoints; its message says why")
        return int(agreed)
