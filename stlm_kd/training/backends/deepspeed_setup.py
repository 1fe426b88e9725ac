"""Import and configure DeepSpeed for Accelerate, quiet and without its own scheduling or scaling."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from inspect import getclosurevars, isfunction

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs, patch_environment
from packaging.version import Version
from torch import distributed, nn
from torch.nn import functional

from stlm_kd.distributed import join_processes
from stlm_kd.errors import MissingResourceError
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.optimizer import trainable_parameters
from stlm_kd.training.processes import current_device

OLDEST = Version("0.19.8")
"""Agrees with plain PyTorch; 0.18.2 accumulates wrongly at ZeRO 2, 0.19.4 misses infinite gradients."""

LARGEST_BUCKET = 2**27
"""Maximum elements per reduction; DeepSpeed allocates a whole bucket even for small models."""

_OFFLOADED = {
    "none": (),
    "optimizer": ("offload_optimizer",),
    "parameters": ("offload_optimizer", "offload_param"),
}


def deepspeed_accelerator(step: nn.Module, settings: TrainingConfig) -> Accelerator:
    """An accelerator for DeepSpeed; ``MissingResourceError`` without it or on an unsupported device."""
    device = current_device()
    if device.type == "mps":
        raise MissingResourceError("zero: DeepSpeed does not train on MPS; leave zero out")
    import_deepspeed(device)
    if settings.deepspeed.settings.keys() - {"zero_optimization"}:  # such as comms_logger, which reports
        _report_on_stderr()
    _join_or_be_alone(device)
    AcceleratorState._reset_state(reset_partial_state=True)  # see forget_deepspeed
    backend = "gloo" if device.type == "cpu" else "nccl"
    return Accelerator(
        mixed_precision="no",
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed_config(step, settings)),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )


def _report_on_stderr() -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.INFO)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def deepspeed_config(step: nn.Module, settings: TrainingConfig) -> dict[str, object]:
    """DeepSpeed's configuration, without scaling or scheduling.

    Casts only with ``weights="bf16"``; ``Engine.gradient_norm`` finds gradients that are not finite.
    """
    elements = sum(weight.numel() for weight in trainable_parameters(step).values())
    offloaded, is_pinned = _OFFLOADED[settings.deepspeed.offload], current_device().type == "cuda"
    given = settings.deepspeed.settings
    zero = given.get("zero_optimization", {})
    bf16 = {
        "bf16": {"enabled": True, "check_grad_overflow": False},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    return {
        **given,
        **(bf16 if settings.has_bf16_weights else {}),
        "train_micro_batch_size_per_gpu": 1,  # required but unused
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.clip or 0.0,  # the default would be 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeedCPUAdam needs a compiler
        "zero_optimization": {
            "reduce_bucket_size": min(elements, LARGEST_BUCKET),
            **zero,
            "stage": settings.zero,
            **{part: {"pin_memory": is_pinned, **zero.get(part, {}), "device": "cpu"} for part in offloaded},
        },
    }


def import_deepspeed(device: torch.device) -> None:
    """Import DeepSpeed with stdout redirected, since its logger would keep writing there."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with redirect_stdout(sys.stderr):
            import deepspeed.ops
    except ImportError as error:
        raise MissingResourceError(
            f"zero: DeepSpeed cannot be imported ({error}); pip install deepspeed, or leave zero out"
        ) from error
    found = Version(metadata.version("deepspeed"))
    if found < OLDEST:
        raise MissingResourceError(
            f"zero: deepspeed {found} found, expected {OLDEST} or newer: older ones train wrong weights at "
            "ZeRO 2 with several micro-batches, or miss infinite gradients; pip install -U deepspeed"
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Otherwise DeepSpeed compiles a CPU operator, which needs a C++ compiler and about a minute.
    compatible = getattr(deepspeed.ops, "__compatible_ops__", None)
    if device.type == "cpu" and isinstance(compatible, dict):
        compatible["deepspeed_shm_comm"] = False


def _join_or_be_alone(device: torch.device) -> None:
    """Initialise a process group, which DeepSpeed requires even for a single process."""
    join_processes()
    if not distributed.is_initialized():
        from torch.distributed import HashStore  # type: ignore[attr-defined]  # left out of torch's __all__

        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def forget_modules() -> None:
    """Empty the stack and the caches in which ZeRO 3 leaves a trained module, which would never be freed."""
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    stack = getattr(parameter_offload, "FWD_MODULE_STACK", None)
    if isinstance(stack, list):
        stack.clear()
    coordinator = getattr(partitioned_param_coordinator, "PartitionedParameterCoordinator", None)
    for method in filter(isfunction, vars(coordinator).values() if isinstance(coordinator, type) else ()):
        cached = getclosurevars(method).nonlocals.get("func")  # within a decorator without __wrapped__
        if cached is not None and hasattr(cached, "cache_clear"):
            cached.cache_clear()


@contextmanager
def surroundings() -> Iterator[None]:
    """What a training needs around it: ``LOCAL_RANK``, which DeepSpeed requires even of a single process.

    Its reports go to stderr. Deprecation warnings of newer PyTorch about functions that it uses are ignored.
    ZeRO 3 replaces ``functional.linear`` for good, by one that rounds otherwise; it is put back.
    """
    linear = functional.linear
    rank = patch_environment(LOCAL_RANK=os.environ.get("LOCAL_RANK", "0"))
    with rank, redirect_stdout(sys.stderr), warnings.catch_warnings():
        for part, category in (("distributed", FutureWarning), ("jit", DeprecationWarning)):
            message = rf"`torch\.{part}\.\w+` is deprecated"
            warnings.filterwarnings("ignore", message=message, category=category)
        try:
            yield
        finally:
            functional.linear = linear
