"""Which files hold a model's weights: safetensors in its own folder, and nothing else."""

from __future__ import annotations

from pathlib import Path

from transformers import PretrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from stlm_kd.artifacts.atomic import read_json
from stlm_kd.errors import ModelError, first_line, one_line

_ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model; empty if any is missing."""
    files = [folder / name for name in weight_names(folder)]
    return files if all(file.is_file() for file in files) else []


def weight_names(folder: Path) -> list[str]:
    """Names of a model's safetensors files, according to its index if it has one and no single file.

    Raises:
        ModelError: The index is invalid, or names files outside the folder or of another format.
    """
    index, is_whole = folder / SAFE_WEIGHTS_INDEX_NAME, (folder / SAFE_WEIGHTS_NAME).is_file()
    if not index.exists():
        return [SAFE_WEIGHTS_NAME]
    try:
        content = read_json(index)
        named = sorted(set(content["weight_map"].values()))
        outside = [file for file in named if Path(file).name != file]
        others = [file for file in named if not file.endswith(".safetensors")]
        if not (is_whole or outside or others) and not (named and isinstance(content["metadata"], dict)):
            raise ValueError("without weights, or with metadata that are no mapping")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index}: not an index of weights ({first_line(error)}); fetch or copy it again"
        ) from error
    if outside:
        raise ModelError(
            f"{index}: names {one_line(outside[0])}, which is not a file of that folder; it is not read"
        )
    if others:
        raise ModelError(
            f"{index}: names {one_line(others[0])}; only safetensors weights are read, never pickled ones; "
            "save the model as safetensors"
        )
    return [SAFE_WEIGHTS_NAME] if is_whole else named


def refuse_other_weights(folder: Path, config: PretrainedConfig) -> None:
    """Refuse what makes transformers load other weights than those of ``weight_names``.

    Raises:
        ModelError: An adapter, whose base model and pickles it would load; or a file that config.json names.
    """
    if (folder / _ADAPTER).exists():
        raise ModelError(
            f"{folder / _ADAPTER}: an adapter's settings found, expected a whole model; merge the "
            "adapter into its model and save that (peft: merge_and_unload), or remove the file"
        )
    if (named := getattr(config, "transformers_weights", None)) is not None:
        raise ModelError(
            f"{folder}/config.json: transformers_weights {named!r} found, expected the weights in "
            f"{SAFE_WEIGHTS_NAME}; remove the key"
        )
