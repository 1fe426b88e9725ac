"""Detect by its weights a MobiLlama whose configuration says Llama, as saved by its authors' code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from stlm_kd.models.architectures.mobillama import MobiLlamaConfig
from stlm_kd.models.checkpoints.weight_files import weight_files

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
