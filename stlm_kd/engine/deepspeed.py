"""What moves the weights: DeepSpeed at ZeRO 0, 1 or 2, made by Accelerate.

ZeRO 1 and 2 lay the trained parameters of each group of the optimizer end to end, cut that in as many equal
parts as there are processes, and let each process keep the float32 weights and the optimizer's state of its
own part. ``_hp_mapping`` of a parameter says which piece of it, if any, lies where in this process's part.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, distributed, nn

from stlm_kd.data.batch import Batch
from stlm_kd.engine.launched import join_processes
from stlm_kd.engine.plain import MicroBatch
from stlm_kd.engine.processes import Processes, current_device
from stlm_kd.engine.protocols import FitSettings
from stlm_kd.errors import EnvironmentFault
from stlm_kd.optim import (
    check_optimizer_tensors,
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
    trainable_parameters,
)

LARGEST_BUCKET = 2**27
"""Elements that are reduced at once; DeepSpeed allocates a whole bucket, however small the model."""


def deepspeed_accelerator(step: nn.Module, settings: FitSettings) -> Accelerator:
    """Accelerate, set up to make DeepSpeed engines for ``step``.

    Raises:
        EnvironmentFault: there is no DeepSpeed, or none for this device.
    """
    device = current_device()
    if device.type == "mps":
        raise EnvironmentFault("zero: DeepSpeed does not train on MPS; leave zero out")
    _import_deepspeed(device)
    _join_or_be_alone(device)
    # Accelerate's state is shared by the whole process and refuses another kind of training.
    AcceleratorState._reset_state(reset_partial_state=True)
    backend = "gloo" if device.type == "cpu" else "nccl"
    return Accelerator(
        mixed_precision="no",
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed_config(step, settings)),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )


def deepspeed_config(step: nn.Module, settings: FitSettings) -> dict[str, object]:
    """DeepSpeed's configuration: it divides, casts and schedules nothing by itself."""
    elements = sum(weight.numel() for weight in trainable_parameters(step).values())
    return {
        "train_micro_batch_size_per_gpu": 1,  # must be there; nothing reads it
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip or 0.0,  # always: left out, it is 1.0
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": settings.zero,
            "reduce_bucket_size": min(elements, LARGEST_BUCKET),
        },
    }


class DeepSpeedEngine:
    """DeepSpeed; see ``protocols.Engine``.

    Which parameters have a gradient must not depend on the process: ZeRO 2 reduces gradients in the order in
    which they come. A parameter without any is left alone, where DeepSpeed would let it decay.
    """

    def __init__(self, step: nn.Module, settings: FitSettings, processes: Processes) -> None:
        self.step = step
        self.processes = processes
        self.weights = trainable_parameters(step.to(processes.device))
        self.attributes = {name: set(vars(weight)) for name, weight in self.weights.items()}
        optimizer = make_optimizer(
            step,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
            eps=settings.eps,
        )
        self.adamw = optimizer
        indices = {
            id(w): index for index, group in enumerate(optimizer.param_groups) for w in group["params"]
        }
        self.group_of = {name: indices[id(weight)] for name, weight in self.weights.items()}
        with _environment("LOCAL_RANK", os.environ.get("LOCAL_RANK", "0")), _deprecations_ignored():
            self.engine, _ = processes.accelerator.prepare(MicroBatch(step, settings.precision), optimizer)
        self.optimizer = self.engine.optimizer
        self.is_divided = settings.zero != 0
        self.touched: set[str] = set()
        self.ever_touched: set[str] = set()
        self.hooks = [
            weight.register_post_accumulate_grad_hook(partial(self._touch, name))  # type: ignore[no-untyped-call]
            for name, weight in self.weights.items()
        ]

    def begin_step(self) -> None:
        """See ``Engine``. DeepSpeed forgets its gradients itself, after its step."""
        self.touched.clear()

    def accumulate(
        self, batch: Batch, denominators: dict[str, float], *, is_last: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Engine``. DeepSpeed divides by the number of processes, which is multiplied back here."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        loss, terms = self.engine(batch, denominators)
        self.engine.backward(loss * self.processes.count)
        return loss.detach(), terms

    def gradient_norm(self) -> Tensor:
        """See ``Engine``."""
        if self.is_divided:
            norm = self.optimizer.scaled_global_norm()
            assert isinstance(norm, Tensor)
            return norm
        for name in self.weights.keys() - self.touched:
            self.weights[name].grad = None  # where DeepSpeed put zeros
        return nn.utils.get_total_norm([w.grad for w in self.weights.values() if w.grad is not None])

    def gradients_not_finite(self) -> list[str]:
        """See ``Engine``."""
        from deepspeed.utils import safe_get_full_grad

        found = {
            name: safe_get_full_grad(self.weights[name]) for name in self.weights if name in self.touched
        }
        return [name for name, gradient in found.items() if not bool(torch.isfinite(gradient).all())]

    @torch.no_grad()
    def end_step(self, learning_rate: float) -> None:
        """See ``Engine``."""
        self.ever_touched |= self.touched
        set_learning_rate(self.optimizer, learning_rate)
        idle = sorted(self.weights.keys() - self.touched) if self.is_divided else []
        before = {name: self.weights[name].detach().clone() for name in idle}
        state = self._gathered([name for name in idle if name in self.ever_touched])
        with _deprecations_ignored():
            self.engine.step()
        for name, weight in before.items():
            self.weights[name].copy_(weight)
            self._put(name, weight, self._part(name))
        for full_name, tensor in state.items():
            name, _, key = full_name.rpartition("/")
            if tensor.ndim > 0:
                self._put(name, tensor, self.adamw.state[self._part(name)][key])

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """See ``Engine``."""
        if not self.is_divided:
            return optimizer_tensors(self.optimizer, self.step)
        return self._gathered([name for name in self.weights if name in self.ever_touched])

    @torch.no_grad()
    def load_optimizer_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """See ``Engine``.

        The parameters of a part share their count of steps; where a checkpoint of plain training has
        different ones, because some had no gradient at times, the largest is taken.
        """
        if not self.is_divided:
            load_optimizer_tensors(self.optimizer, self.step, tensors)
            return
        check_optimizer_tensors(self.step, tensors)
        self.ever_touched = {name.rpartition("/")[0] for name in tensors}
        self.adamw.load_state_dict(
            {
                "state": {
                    index: self._divided_state(index, tensors)
                    for index in range(len(self.adamw.param_groups))
                },
                "param_groups": self.adamw.state_dict()["param_groups"],
            }
        )

    @torch.no_grad()
    def weights_were_loaded(self) -> None:
        """See ``Engine``: ZeRO 1 and 2 hold the weights twice, and overwrite the module's with their own."""
        if self.is_divided:
            for name, weight in self.weights.items():
                self._put(name, weight, self._part(name))

    def close(self) -> None:
        """See ``Engine``: the weights get memory of their own again, and nothing of DeepSpeed stays."""
        for hook in self.hooks:
            hook.remove()
        for weight in self.weights.values():
            weight.grad = None
            weight.data = weight.data.clone()
        self.processes.accelerator.free_memory()
        for name, weight in self.weights.items():
            for attribute in vars(weight).keys() - self.attributes[name]:
                delattr(weight, attribute)
        os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
        AcceleratorState._reset_state(reset_partial_state=True)

    def _touch(self, name: str, weight: Tensor) -> None:
        self.touched.add(name)

    def _part(self, name: str) -> Tensor:
        """The weights that this process keeps of the group that ``name`` is in, flat."""
        part = self.adamw.param_groups[self.group_of[name]]["params"][0]
        assert isinstance(part, Tensor)
        return part

    def _piece(self, name: str) -> tuple[slice, slice] | None:
        """Which elements of a parameter lie in this process's part, and where there."""
        mapping = self.weights[name]._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return slice(own.start, own.start + own.numel), slice(there.start, there.start + there.numel)

    def _put(self, name: str, whole: Tensor, part: Tensor) -> None:
        if (piece := self._piece(name)) is not None:
            part[piece[1]] = whole.reshape(-1)[piece[0]].to(part)

    def _gathered(self, names: list[str]) -> dict[str, Tensor]:
        """The optimizer's state of some parameters, whole; called by all processes."""
        tensors = {}
        for name in names:
            for key, value in self.adamw.state[self._part(name)].items():
                whole = value.clone() if value.ndim == 0 else self._whole(name, value)
                tensors[f"{name}/{key}"] = whole
        return tensors

    def _whole(self, name: str, part: Tensor) -> Tensor:
        weight = self.weights[name]
        whole = part.new_zeros(weight.numel())
        if (piece := self._piece(name)) is not None:
            whole[piece[0]] = part[piece[1]]
        return self.processes.sum(whole).reshape(weight.shape)

    def _divided_state(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this process keeps of one group's optimizer state, zero where a parameter has none."""
        state: dict[str, Tensor] = {}
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition("/")
            if self.group_of[name] != index:
                continue
            if tensor.ndim == 0:
                state[key] = torch.maximum(state.get(key, tensor), tensor)
            else:
                part = state.setdefault(key, torch.zeros_like(self._part(name)))
                self._put(name, tensor, part)
        return state


def _import_deepspeed(device: torch.device) -> None:
    """Import it without a word on stdout, where its logger would write for as long as the process lives."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with redirect_stdout(sys.stderr):
            import deepspeed.ops
    except ImportError as error:
        raise EnvironmentFault(f"zero: DeepSpeed cannot be imported ({error}); install deepspeed") from error
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Else each new machine compiles an operator for CPUs, for which it needs a C++ compiler and a minute.
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if device.type == "cpu" and isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False


def _join_or_be_alone(device: torch.device) -> None:
    """DeepSpeed wants a process group even of one."""
    join_processes()
    if not distributed.is_initialized():
        from torch.distributed import HashStore  # type: ignore[attr-defined]

        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


@contextmanager
def _deprecations_ignored() -> Iterator[None]:
    """DeepSpeed calls collectives, and imports parts of PyTorch, that newer PyTorch warns of."""
    with warnings.catch_warnings():
        for part, category in (("distributed", FutureWarning), ("jit", DeprecationWarning)):
            message = rf"`torch\.{part}\.\w+` is deprecated"
            warnings.filterwarnings("ignore", message=message, category=category)
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
