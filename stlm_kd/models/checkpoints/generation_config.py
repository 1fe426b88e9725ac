"""Repair a checkpoint's generation settings so that the model can be saved again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME

from stlm_kd.errors import ModelError
from stlm_kd.notes import note


def mend_generation_config(model: PreTrainedModel, *, place: str) -> None:
    """Drop settings with which transformers would refuse to save the model, with a note that names them.

    transformers validates strictly after any change, such as of special ids: a temperature without
    ``do_sample: true``, as in many published checkpoints, would fail after the training. ``place`` is the
    model's folder or Hub id.
    """
    if not model.can_generate():
        return
    config = model.generation_config
    found = _fault(config)
    if found is None:
        return
    dropped = []
    for name, value in _settings(config).items():
        trial = copy.deepcopy(config)
        setattr(trial, name, getattr(GenerationConfig(), name, None))
        rest = _fault(trial)
        if rest is None or len(rest) < len(found):
            setattr(config, name, getattr(trial, name))
            dropped.append(f"{name} {value}")
            found = rest
        if found is None:
            break
    note(
        f"{place}/{GENERATION_CONFIG_NAME}: dropped {', '.join(dropped)}, with which transformers refuses to "
        "save the model again (sampling settings need do_sample: true)"
    )


def refuse_unreadable_generation_config(folder: Path, *, place: str) -> None:
    """Raise ``ModelError``, naming the file, if transformers cannot read a model's generation settings."""
    try:
        GenerationConfig.from_pretrained(folder)  # nosec B615  # a folder
    except OSError:
        return  # missing or not JSON, which transformers replaces
    except Exception as error:
        raise ModelError(
            f"{place}/{GENERATION_CONFIG_NAME}: transformers cannot read it ({error}); expected valid "
            "generation settings; correct or delete it: it does not affect training"
        ) from error


def _settings(config: GenerationConfig) -> dict[str, Any]:
    """Settings that differ from the defaults."""
    plain = GenerationConfig().to_dict()
    return {name: value for name, value in config.to_dict().items() if value != plain.get(name)}


def _fault(config: GenerationConfig) -> str | None:
    """Why transformers would refuse to save it; None if it would not."""
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        return str(error)
    return None
