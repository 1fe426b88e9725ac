"""The guard of what transformers loads: its errors as ours, and limits before anything is allocated."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.errors import MissingResourceError, ModelError, StlmKdError, first_line, foreign_errors

MOST_LAYERS = 1000
"""Maximum number of layers of a configuration."""

MOST_CLASSES = 100_000
"""Maximum number of classes of a configuration."""

_GROWTH = 4
"""How many times more bytes than its files have a model may need in float32: of bf16 twice as many."""
_NEW_ROWS = 2**28
"""Parameters that no file needs to have, such as those of a new head."""


@contextmanager
def loading_errors(name: str, folder: Path) -> Iterator[None]:
    """Raise whatever transformers raises as a ModelError or MissingResourceError, with what to do."""

    def as_ours(error: BaseException) -> StlmKdError:
        if "trust_remote_code" in str(error):
            return ModelError(
                f"{name}: the model needs custom code, which is not run by default; review it, and if you "
                "trust it, pass --trust-remote-code"
            )
        if isinstance(error, SafetensorError):
            return ModelError(
                f"{name}: the weights cannot be read ({first_line(error)}); fetch or copy them again"
            )
        if isinstance(error, ImportError):
            return MissingResourceError(
                f"{name}: its code needs a package that is not installed ({first_line(error)}); install it"
            )
        if not isinstance(error, OSError):
            return ModelError(
                f"{name}: not a language model that transformers can load ({reason(error)}); correct its "
                "config.json, or fetch it again"
            )
        if "valid JSON" in str(error):
            return ModelError(f"{name}/config.json: not valid JSON; fetch or copy it again")
        return MissingResourceError(f"{name}: {_what_is_absent(folder, error)}")

    with foreign_errors(as_ours, is_quiet=True):
        yield


def reason(error: BaseException) -> str:
    """What is wrong, in one line: of a field of a configuration, what was expected and found."""
    cause = error.__cause__ if isinstance(error, StrictDataclassError) else None
    return first_line(cause or error)


def _what_is_absent(folder: Path, error: BaseException) -> str:
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    whole = any(folder.glob("*.safetensors"))
    if pickled and not whole:
        return (
            f"no model.safetensors ({pickled[0]}); only safetensors weights are read, never pickled ones; "
            "convert what you trust by transformers: model.save_pretrained(FOLDER, safe_serialization=True)"
        )
    fault = first_line(error) if whole else "no weights in this folder; expected model.safetensors"
    return f"{fault}; fetch or copy it again"


def check_classes(folder: Path, *, place: str) -> None:
    """Raise ``ModelError`` for more classes than transformers, which names each of them, has memory for."""
    try:
        found = read_json(folder / CONFIG_NAME)
    except (OSError, ValueError):
        return  # which transformers will say
    classes = found.get("num_labels") if isinstance(found, dict) else None
    if isinstance(classes, int) and classes > MOST_CLASSES:
        raise ModelError(f"{place}: num_labels {classes:,} found; expected at most {MOST_CLASSES:,}")


def check_layers(config: PretrainedConfig, *, place: str) -> None:
    """Raise ``ModelError`` for more layers than any model has, which would be built one by one."""
    found = getattr(config, "num_hidden_layers", None)
    if isinstance(found, int) and found > MOST_LAYERS:
        raise ModelError(f"{place}: num_hidden_layers {found:,} found; expected at most {MOST_LAYERS:,}")


def check_extent(config: PretrainedConfig, kind: Any, folder: Path, *, place: str) -> None:
    """Raise ``ModelError`` if a configuration needs far more memory than its weights' files explain.

    transformers would initialise what the files lack. ``kind`` is the Auto class that will load the model.
    """
    with torch.device("meta"):  # eager attention needs no kernel, whatever the configuration asks for
        empty = kind.from_config(copy.deepcopy(config), attn_implementation="eager")
    needed = sum(parameter.numel() for parameter in empty.parameters())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if needed > _NEW_ROWS + _GROWTH * stored:
        raise ModelError(
            f"{place}: {needed:,} parameters described, but its weights are files of {stored:,} bytes; take "
            "the config.json and the weights of one model"
        )
