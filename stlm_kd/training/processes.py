"""The processes of a training, and reductions over them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    gather_object,
)
from torch import Tensor, distributed

from stlm_kd.distributed import join_processes, launched_processes, waiting_group
from stlm_kd.errors import DivergedError, MissingResourceError
from stlm_kd.placement import placement

T = TypeVar("T")


def current_device() -> torch.device:
    """The training device of this process: its own GPU, MPS, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", placement().local_rank)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Processes:
    """Accelerate, configured to leave scaling, casting and accumulation to the training loop.

    Mixed precision is an ``autocast`` context, so that trainings of different precision can run in one
    process: Accelerate's state is global and does not allow a change of precision. Raises
    ``MissingResourceError`` if more processes were launched than Accelerate detects.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.device: torch.device = self.accelerator.device
        self.count: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.is_first: bool = self.rank == 0
        if self.count != launched_processes():
            raise MissingResourceError(
                f"WORLD_SIZE: {launched_processes()} processes were launched, but they are {self.count} for "
                "Accelerate; launch with torchrun, which sets RANK, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
            )

    @property
    def float_type(self) -> torch.dtype:
        """The data type of sums: float64, or float32 on MPS, which lacks float64."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the device, without synchronising with the host."""
        if self.count == 1:
            return values
        total = self.accelerator.reduce(values, reduction="sum")
        assert isinstance(total, Tensor)
        return total

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """The sums of numbers over all processes, exact for integers."""
        if self.count == 1:
            return [float(value) for value in values]
        total = self.sum(torch.tensor([*values], dtype=self.float_type, device=self.device))
        return [float(value) for value in total.tolist()]

    def begin_sum(self, value: float) -> Callable[[], float]:
        """Begin to sum a number over several processes, on the CPU beside other work; the call awaits it."""
        total = torch.tensor([value], dtype=torch.float64)
        work = distributed.all_reduce(total, group=waiting_group(), async_op=True)

        def found() -> float:
            work.wait()
            return total.item()

        return found

    def gather(self, value: T) -> list[T]:
        """The values of all processes, which can be pickled, in the order of the ranks."""
        return list(gather_object([value])) if self.count > 1 else [value]

    def all_names(self, names: Sequence[str]) -> list[str]:
        """The union of the names of all processes, sorted."""
        return sorted({name for found in self.gather(list(names)) for name in found})

    def check_same(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ``DivergedError``, which names them, if tensors are not bitwise equal in all processes."""
        if self.count == 1 or not tensors:
            return
        found = [float(_checksum(tensor)) for tensor in tensors.values()]
        totals = self.sum_numbers(found)
        # A process may hold the mean of the others and see no difference, so differences are shared.
        differs = self.sum_numbers(
            [float(total != own * self.count) for own, total in zip(found, totals, strict=True)]
        )
        names = [name for name, processes in zip(tensors, differs, strict=True) if processes]
        if names:
            raise DivergedError(
                f"{len(names)} of {len(tensors)} trained tensors differ between the {self.count} processes: "
                f"{', '.join(names[:3])}{' …' if len(names) > 3 else ''}; their gradients were not shared. "
                "Each must be a registered parameter that every process uses alike"
            )


def plain_accelerator() -> Accelerator:
    """An accelerator for a single process or DDP, regardless of ``ACCELERATE_USE_DEEPSPEED``."""
    join_processes()
    forget_deepspeed()
    on_cpu = current_device().type == "cpu"
    wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Several CPU processes need an explicit backend to be detected; a single process fails with one.
    needs_backend = on_cpu and launched_processes() > 1
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no",
        # As a plugin, since an environment variable would override a plain number.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[wrapping, InitProcessGroupKwargs(backend="gloo")] if needs_backend else [wrapping],
    )


def forget_deepspeed() -> None:
    """Reset Accelerate's global state, as its own tests do, so that the next training can use any engine."""
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", None) is not None:
        AcceleratorState._reset_state(reset_partial_state=True)


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
