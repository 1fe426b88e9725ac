"""Reject integer, 8-bit and non-finite weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from stlm_kd.errors import ModelError
from stlm_kd.models.checkpoints.weight_files import weight_files

_REAL_TYPES = ("F64", "F32", "F16", "BF16")


def check_weights(folder: Path, model: PreTrainedModel) -> None:
    """Check that the weights of a model, loaded from ``folder``, are finite real numbers.

    Dtypes are read from the file headers: transformers converts them silently, and integer or 8-bit values
    are meaningless without their scales. Buffers, such as masks and positions, may have any dtype. Raises
    ``ModelError``, which names the file and the tensor.
    """
    parameters = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    files: dict[str, Path] = {}
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                own = _own_name(key, parameters, prefix)
                if own is None:
                    continue
                files[own] = path
                kind = file.get_slice(key).get_dtype()
                if kind not in _REAL_TYPES:
                    raise ModelError(
                        f"{path}: tensor {key} is of type {kind}; expected floating-point weights "
                        f"({', '.join(_REAL_TYPES)}); use the unquantised checkpoint"
                    )
    for own, parameter in parameters.items():
        if not _is_finite(parameter.detach()):
            wrong = int((~torch.isfinite(parameter)).sum())
            raise ModelError(
                f"{files.get(own, folder)}: tensor {own} has {wrong:,} values of {parameter.numel():,} that "
                "are NaN or infinite; expected finite weights; fetch it again, or use an earlier checkpoint"
            )


def _own_name(key: str, parameters: dict[str, torch.nn.Parameter], prefix: str) -> str | None:
    """The model's parameter name of a file's tensor, with or without the body's prefix; None for a buffer."""
    names = (key, f"{prefix}{key}", key.removeprefix(prefix))
    return next((own for own in names if own in parameters), None)


def _is_finite(values: torch.Tensor) -> bool:
    """Whether all values are finite: by their sum first, and elementwise if that overflows."""
    return bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all())
