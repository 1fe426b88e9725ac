"""Load and validate language models from folders and the Hub, and save them atomically."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import logging

from stlm_kd.artifacts.atomic import written_whole
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.architectures import mobillama
from stlm_kd.models.architectures.mobillama_detection import detect
from stlm_kd.models.checkpoints.boundary import check_classes, check_extent, check_layers, loading_errors
from stlm_kd.models.checkpoints.generation_config import (
    mend_generation_config,
    refuse_unreadable_generation_config,
)
from stlm_kd.models.checkpoints.weight_files import refuse_other_weights, weight_names
from stlm_kd.models.checkpoints.weights import check_weights
from stlm_kd.models.families import ARCHITECTURES, Task
from stlm_kd.sharing.names import expanded, hub_name_or_path
from stlm_kd.sharing.pins import local_folder

mobillama.register()

OWN_ATTENTION = ("sdpa", "eager")
"""Supported attention implementations, in order of preference."""

LanguageModels = type[AutoModelForCausalLM] | type[AutoModelForMaskedLM]
Kind = LanguageModels | type[AutoModelForSequenceClassification] | type[AutoModelForTokenClassification]
"""The transformers class that builds and loads a kind of model."""

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise importing deepspeed prints a warning to stdout


def load_config(name: str, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """Load the configuration of a folder (``~`` and ``$VARIABLES`` are expanded) or Hub name, no weights.

    A MobiLlama whose configuration says Llama is detected if its weights are on this machine
    (``mobillama_detection.detect``).

    Raises:
        MissingResourceError: No such folder, the Hub and its cache do not have it, or its custom code needs
            a package that is not installed.
        ModelError: It needs custom code and ``trust_remote_code`` is off, it cannot be parsed, or its weights
            are quantized.
    """
    return _config(name, folder_of(name, weights=False, code=trust_remote_code), trust_remote_code)


def folder_of(name: str, *, weights: bool = True, code: bool = False) -> Path:
    """The folder of a model, with its configuration; of a Hub name, the fetched commit.

    Raises:
        MissingResourceError: No such folder, no configuration in it, or as ``local_folder``.
        ModelError: As ``local_folder``.
    """
    folder = local_folder(name, weights=weights, code=code)
    if folder.is_file():
        raise MissingResourceError(f"{folder}: a file; expected a model's folder or its id on the Hub")
    if not folder.is_dir():
        raise MissingResourceError(
            f"{folder}: no such folder (seen from {Path.cwd()}), and no Hub id; give one that exists"
        )
    if not (folder / "config.json").is_file():
        raise MissingResourceError(
            f"{_label(name)}: a folder without config.json; expected a Hugging Face model folder"
        )
    return folder


def _label(name: str) -> str:
    """A model's name in messages and configurations: an expanded path, or the name on the Hub."""
    return str(expanded(name)) if hub_name_or_path(name) is None else name


def _config(name: str, folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    label = _label(name)
    with loading_errors(label, folder), quietly(local=True):
        check_classes(folder, place=f"{label}/config.json")
        trusted = trust_remote_code and not _is_known_here(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)  # nosec B615  # a folder
    assert isinstance(config, PretrainedConfig)
    check_layers(config, place=f"{label}/config.json")
    _refuse_quantized(label, config)
    config = detect(folder, config)
    config.name_or_path = label
    return config


def _refuse_quantized(name: str, config: PretrainedConfig) -> None:
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise ModelError(
            f"{name}/config.json: quantization_config found (method: {method or 'not named'}); expected "
            "floating-point weights; take the model that this one was quantized from"
        )


def _is_known_here(folder: Path) -> bool:
    """Whether a model's family is implemented in this package, so that the code in its folder is not run."""
    fields, _ = PretrainedConfig.get_config_dict(folder)
    return fields.get("model_type") == mobillama.MobiLlamaConfig.model_type


def load_language_model(
    name: str,
    task: Task | None,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    head_seed: int | None = None,
) -> PreTrainedModel:
    """Load a language model from safetensors, in evaluation mode, with sdpa attention.

    Args:
        name: Folder or Hub name.
        task: Required task; None accepts the one in its configuration.
        trust_remote_code: Whether to run the model's custom code.
        dtype: Dtype of the weights.
        head_seed: Random seed of a new head, for a folder with a body only. None requires a head.

    Raises:
        MissingResourceError: It is neither a folder nor available from the Hub or its cache.
        ModelError: It needs custom code, has no safetensors weights, lacks weights, or has another task.
    """
    name, config = config_to_load(name, trust_remote_code=trust_remote_code)
    task = task or declared_task(config)
    check_task(config, task, place=name)
    model, info = load_weights(
        name, config, model_class(task), trust_remote_code=trust_remote_code, dtype=dtype, seed=head_seed
    )
    missing = sorted(info["missing_keys"])
    of_body = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if head_seed is None and missing and not of_body:
        raise ModelError(
            f"{name}: a {config.model_type} body without a head (missing: {missing[0]}, …); use it as "
            "student.model with student.new_head: true; once trained it can be a teacher or be scored"
        )
    if head_seed is not None:
        if missing == of_body:
            raise ModelError(f"{name}: it has a head already; remove student.new_head")
        missing = of_body
    require_all(name, config, missing, what="language model")
    check_shapes(name, model.config, info)
    if not isinstance(model.get_output_embeddings(), nn.Linear):
        raise ModelError(f"{name}: a {config.model_type} model without a linear vocabulary head")
    model.eval()
    return model


def config_to_load(name: str, *, trust_remote_code: bool) -> tuple[str, PretrainedConfig]:
    """A model's name in messages and its configuration; the weights are fetched, to detect the family.

    Raises:
        MissingResourceError: As ``load_config``.
        ModelError: As ``load_config``, ``weight_names`` and ``refuse_other_weights``.
    """
    folder = folder_of(name, code=trust_remote_code)
    weight_names(folder)
    config = _config(name, folder, trust_remote_code)
    refuse_other_weights(folder, config)
    return _label(name), config


def require_all(name: str, config: PretrainedConfig, missing: Sequence[str], *, what: str) -> None:
    """Check that no weights are missing.

    Raises:
        ModelError: Some are.
    """
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} weights are missing (first: {missing[0]}); "
            f"the folder does not hold a whole {config.model_type} {what}"
        )


def check_shapes(
    name: str, config: PretrainedConfig, info: Mapping[str, Any], *, replaced: Collection[str] = ()
) -> None:
    """Check that the weights match the configuration's shapes and number of layers.

    Args:
        name: Name of the model in messages.
        config: Its configuration.
        info: Loading info from transformers.
        replaced: Weights that are newly initialised.

    Raises:
        ModelError: Weights have other shapes or belong to further layers.
    """
    mismatched = sorted(row for row in info["mismatched_keys"] if row[0] not in replaced)
    if mismatched:
        key, found, expected = mismatched[0]
        raise ModelError(
            f"{name}: {len(mismatched)} weights are of another shape than config.json says (first: {key} is "
            f"{list(found)}, not {list(expected)}); take the config.json and the weights of one model"
        )
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        return
    block = re.compile(rf"(?:^|\.){re.escape(row.blocks)}\.(\d+)\.")
    layer_matches = [(key, block.search(key)) for key in sorted(info["unexpected_keys"])]
    beyond = [key for key, match in layer_matches if match and int(match[1]) >= config.num_hidden_layers]
    if beyond:
        raise ModelError(
            f"{name}: {len(beyond)} weights are of layers beyond the {config.num_hidden_layers} that "
            f"config.json has (first: {beyond[0]}); take the config.json and the weights of one model"
        )


def declared_task(config: PretrainedConfig) -> Task:
    """The task of a configuration's language model; causal if it is not declared."""
    row = ARCHITECTURES.get(config.model_type)
    if row is not None:
        return row.task
    return "mlm" if any(name.endswith("ForMaskedLM") for name in config.architectures or ()) else "clm"


def check_task(config: PretrainedConfig, task: Task, *, place: str) -> None:
    """Check that a model's family supports a task.

    Raises:
        ModelError: It does not; the message says why training cannot change that.
    """
    row = ARCHITECTURES.get(config.model_type)
    if row is None or row.task == task:
        return
    if task == "clm":
        raise ModelError(
            f"{place}: {config.model_type} is a masked language model, but the task is clm: it predicts a "
            "position from both sides of its context, which a causal model must not. "
            "Use a causal model, or task: mlm"
        )
    raise ModelError(
        f"{place}: {config.model_type} is a causal language model, but the task is mlm: it does not attend "
        "to tokens after a masked position, so it cannot predict that position. "
        "Use a masked language model such as bert, or task: clm"
    )


def model_class(task: Task) -> LanguageModels:
    """The transformers class that builds and loads models of a task."""
    return AutoModelForCausalLM if task == "clm" else AutoModelForMaskedLM


def load_weights(
    name: str,
    config: PretrainedConfig,
    kind: Kind,
    *,
    trust_remote_code: bool,
    dtype: torch.dtype,
    seed: int | None,
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    """Load a model from safetensors, with transformers' loading info; missing weights are initialised.

    Raises:
        MissingResourceError: The weights are missing or not safetensors, or a package is not installed.
        ModelError: The weights are unreadable, not finite or not floating point, or the model has untrusted
            custom code or unreadable generation settings.
    """
    folder = folder_of(name, code=trust_remote_code)
    with loading_errors(name, folder), quietly(local=True), torch.random.fork_rng(devices=[]):
        if not trust_remote_code:
            check_extent(config, kind, folder, place=f"{name}/config.json")
        torch.manual_seed(seed or 0)
        try:
            loaded: Any = kind.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code and not _is_known_here(folder),
                use_safetensors=True,
                attn_implementation=None,  # sdpa, or eager if unsupported; ignores the folder's setting
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported by output_loading_info and checked later
            )
        except (ValueError, TypeError, RuntimeError):
            refuse_unreadable_generation_config(folder, place=name)
            raise
    model, info = loaded
    assert isinstance(model, PreTrainedModel)
    model.config.name_or_path = model.name_or_path = name
    check_attention(model, name=name)
    check_weights(folder, model)
    mend_generation_config(model, place=name)
    return model, info


def check_attention(model: PreTrainedModel, *, name: str) -> None:
    """Check that a model uses the sdpa or eager attention of transformers.

    Raises:
        ModelError: It does not.
    """
    found = model.config._attn_implementation
    if found not in OWN_ATTENTION:
        raise ModelError(
            f"{name}: this {model.config.model_type} model was loaded with attention {found!r}; expected "
            f"{' or '.join(OWN_ATTENTION)}; remove attn_implementation from its config.json"
        )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer into one Hugging Face folder, atomically.

    Raises:
        OSError: Writing failed, such as on a full disk.
    """
    with written_whole(folder) as unfinished:
        unfinished.mkdir(parents=True)
        with quietly(local=True):
            model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


@contextmanager
def quietly(*, local: bool) -> Iterator[None]:
    """Silence transformers' loading report, which is checked here, and progress bars of local loading."""
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if local and shown:
            logging.enable_progress_bar()


def to_device(model: PreTrainedModel, device: torch.device) -> None:
    """Move a model's weights to a device."""
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides what it decorates
