"""Detect by its weights a MobiLlama whose configuration says Llama, as saved by its authors' code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from stlm_kd.errors import ModelError, one_line
from stlm_kd.models.architectures.mobillama import MobiLlamaConfig

_MLP = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")


def detect(folder: Path, config: PretrainedConfig) -> PretrainedConfig:
    """Return a MobiLlama configuration if the weights of a Llama are those of a MobiLlama.

    This is the case for several layers if only layer 0 has a feed-forward network in the safetensors files,
    or if the networks of all layers are equal there. ``num_key_value_heads`` is then computed from the rows
    of the key projection: the authors' code uses all heads whatever its configuration says.

    Args:
        folder: The folder of the model; its weights are examined if they are there.
        config: Configuration from its config.json.
    """
    if type(config) is not LlamaConfig or config.num_hidden_layers < 2:
        return config
    files = weight_files(folder)
    stamps = tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
    key_rows = _key_rows_of_shared(stamps, config.num_hidden_layers)
    if key_rows is None or config.head_dim is None:
        return config
    fields: dict[str, Any] = config.to_dict()
    for field in ("model_type", "architectures", "auto_map"):
        fields.pop(field, None)
    fields["num_key_value_heads"] = key_rows // config.head_dim
    found = MobiLlamaConfig(**fields)
    if hasattr(config, "_commit_hash"):
        found._commit_hash = config._commit_hash
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; empty if any is missing."""
    files = [folder / name for name in weight_names(folder)]
    return files if all(file.is_file() for file in files) else []


def weight_names(folder: Path) -> list[str]:
    """Names of a model's safetensors files, according to its index if it has one.

    Raises:
        ModelError: The index is invalid, or names files outside the folder or of another format.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return [SAFE_WEIGHTS_NAME]
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [file for file in named if Path(file).name != file]
        others = [file for file in named if not file.endswith(".safetensors")]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index}: not an index of weights ({error}); fetch or copy it again") from error
    if outside:
        raise ModelError(
            f"{index}: names {one_line(outside[0])}, which is not a file of that folder; it is not read"
        )
    if others:
        raise ModelError(
            f"{index}: names {one_line(others[0])}; only safetensors weights are read, never pickled ones; "
            "save the model as safetensors"
        )
    return named


@lru_cache(maxsize=64)
def _key_rows_of_shared(stamps: tuple[tuple[str, int, int], ...], num_layers: int) -> int | None:
    """Rows of layer 0's key projection if all layers share one feed-forward network, else None.

    The stamps (path, size, modification time) are the cache key. Damaged files are reported by loading.
    """
    places: dict[str, str] = {}
    try:
        for file, _, _ in stamps:
            with safe_open(file, framework="pt") as opened:
                places |= dict.fromkeys(opened.keys(), file)
        if not _is_shared(places, num_layers):
            return None
        name = "model.layers.0.self_attn.k_proj.weight"
        return None if name not in places else int(_first_rows(places, name).shape[0])
    except (SafetensorError, OSError):
        return None


def _is_shared(places: Mapping[str, str], num_layers: int) -> bool:
    names = [[f"model.layers.{i}.mlp.{part}" for part in _MLP] for i in range(num_layers)]
    first, later = names[0], names[1:]
    if not all(name in places for name in first):
        return False
    if not any(name in places for layer in later for name in layer):
        return True
    if not all(name in places for layer in later for name in layer):
        return False
    pairs = [pair for layer in later for pair in zip(first, layer, strict=True)]
    alike = all(_equal(places, *pair, rows=1) for pair in pairs)  # avoids reading all weights of a Llama
    return alike and all(_equal(places, *pair) for pair in pairs)


def _equal(places: Mapping[str, str], a: str, b: str, *, rows: int | None = None) -> bool:
    return torch.equal(_first_rows(places, a, rows), _first_rows(places, b, rows))


def _first_rows(places: Mapping[str, str], name: str, rows: int | None = None) -> Tensor:
    with safe_open(places[name], framework="pt") as opened:
        tensor: Tensor = opened.get_slice(name)[:rows]
    return tensor
