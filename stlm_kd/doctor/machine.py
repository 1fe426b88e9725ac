"""Devices, backends, the rendezvous port, and folders."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

from stlm_kd.artifacts.hashing import cache_folder
from stlm_kd.artifacts.record import hardware
from stlm_kd.doctor.finding import Finding
from stlm_kd.errors import first_line, one_line
from stlm_kd.lazy import torch
from stlm_kd.placement import placement

_SCARCE, _TOO_LITTLE = 10 * 10**9, 10**9
"""Free bytes of a disk below which a model and its checkpoints may not fit, or surely do not."""


def check_devices() -> Iterator[Finding]:
    """The GPUs that the driver and PyTorch see, and their memory."""
    yield Finding("machine", "ok", hardware())
    driver, built = _driver(), torch.version.cuda or torch.version.hip
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if driver is None or seen:
        names = [f"{torch.cuda.get_device_name(index)}, {_memory(index)}" for index in range(seen)]
        build = f"PyTorch {torch.__version__}, driver {driver or 'not known'}"
        yield Finding("GPUs", "ok", f"{'; '.join(names) or 'none'}; {build}")
        return
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        yield Finding("GPUs", "ok", f"hidden by CUDA_VISIBLE_DEVICES; driver {driver}")
    elif built is None:
        found = f"driver {driver}, but PyTorch {torch.__version__} is built for CPUs"
        cure = "install a build for GPUs (https://pytorch.org/get-started)"
        yield Finding("GPUs", "warning", found, cure)
    else:
        found = f"driver {driver}, but PyTorch {torch.__version__}, built for {built}, sees no GPU"
        yield Finding("GPUs", "fault", found, "update the driver, or install a build for an older one")


def _driver() -> str | None:
    """The version of NVIDIA's driver; None without a GPU of theirs."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ended = subprocess.run(
            words, capture_output=True, text=True, timeout=20, check=True, errors="replace"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = ended.stdout.split()
    return one_line(lines[0]) if lines else None


def _memory(index: int) -> str:
    free, total = torch.cuda.mem_get_info(index)
    return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free"


def check_backends() -> Iterator[Finding]:
    """Gloo, NCCL where there are GPUs, and whether DeepSpeed can be imported."""
    distributed = torch.distributed
    names = ["gloo", *(["nccl"] if torch.cuda.is_available() else [])]
    missing = [name for name in names if not distributed.is_backend_available(name)]
    if missing:
        found = f"PyTorch {torch.__version__} has no {' and '.join(missing)}"
        yield Finding("backends", "fault", found, "install another build of PyTorch to use several processes")
    else:
        yield Finding("backends", "ok", ", ".join(names))
    if sys.platform != "linux":
        return
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        with redirect_stdout(sys.stderr):  # its logger would write there
            import deepspeed
    except Exception as error:  # whatever its import runs into
        found = f"cannot be imported ({type(error).__name__}: {first_line(error)})"
        yield Finding("DeepSpeed", "fault", found, "install it again, or use no engine: deepspeed")
    else:
        yield Finding("DeepSpeed", "ok", str(deepspeed.__version__))


def check_port() -> Iterator[Finding]:
    """Whether a process can listen where MASTER_PORT says, or anywhere; several processes do so already."""
    place = placement()
    if place.size > 1:
        return
    port = os.environ.get("MASTER_PORT", "0")
    try:
        if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) >= 2**16:
            raise OSError("no port")
        with socket.create_server(("", int(port))):
            yield Finding("port", "ok", f"{port} is free" if int(port) else "there are free ones")
    except OSError as error:
        found = f"MASTER_PORT: nothing can listen at {one_line(port)} ({first_line(error)})"
        yield Finding("port", "fault", found, "free it, or set MASTER_PORT to another, or unset it")


def check_folders(output_dir: Path) -> Iterator[Finding]:
    """Whether the folders that commands write can be written, and have space."""
    from huggingface_hub import constants

    for name, folder, cure in (
        ("output folder", output_dir, "choose another --output-dir"),
        ("cache of stlm-kd", cache_folder(), "set STLM_KD_CACHE to another folder"),
        ("cache of the Hub", Path(constants.HF_HUB_CACHE), "set HF_HOME to another folder"),
        ("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder"),
    ):
        yield _folder(name, folder, cure)


def _folder(name: str, folder: Path, cure: str) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(name, "fault", f"{folder}: cannot be written ({error.strerror or error})", cure)
    found = f"{folder}: {free / 1e9:.1f} GB free"
    if free < _SCARCE:
        return Finding(name, "fault" if free < _TOO_LITTLE else "warning", found, f"free space, or {cure}")
    return Finding(name, "ok", found)
