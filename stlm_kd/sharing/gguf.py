"""Models as GGUF files: each is dequantised once, into an ordinary model folder in the user's cache.

The folder is named by the hash of the file. transformers reads the file; what its reader leaves out or
assumes is read from the header, and a file with parts that it would drop without a word is refused.
"""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stlm_kd.activity import doing
from stlm_kd.errors import ModelError, first_line, foreign_errors, listed
from stlm_kd.lazy import tokenizers, torch
from stlm_kd.notes import note
from stlm_kd.sharing.gguf_cache import cached_folder
from stlm_kd.sharing.gguf_header import Header, Value, read_header
from stlm_kd.sharing.names import expanded, hub_name_or_path

SUFFIX = ".gguf"
FAMILIES = ("gpt2", "llama", "phi3", "qwen2", "qwen3")
"""Architectures, by their names in GGUF (Mistral is a llama there), whose models are read."""

_UNREAD = {
    "gpt2": {"n_positions": "context_length", "n_inner": "feed_forward_length"},
    "mistral": {"sliding_window": "attention.sliding_window"},  # which transformers assumes to be 4096
    "qwen3": {"head_dim": "attention.key_length"},
}
"""Fields of a configuration that transformers' reader leaves out, by model_type, and their keys."""

_NO_PART = ("attention.scale", "logit_scale", "embedding_scale", "residual_scale")
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"}
"""Kinds of words (``tokenizer.ggml.pre``) that are GPT-2's with each digit apart."""


def gguf_file(name: str) -> Path | None:
    """The GGUF file that a model's name means: a file, or the only one of a folder; None for others.

    Raises:
        ModelError: A folder with several of them, and no ordinary model.
    """
    if hub_name_or_path(name) is not None:
        return None
    path = expanded(name)
    if path.suffix.lower() == SUFFIX and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(file for file in path.iterdir() if file.suffix.lower() == SUFFIX)
    if len(found) > 1 and not (path / "tokenizer.json").exists():
        names = listed([file.name for file in found])
        raise ModelError(f"{path}: {len(found)} GGUF files found ({names}); give one of them")
    return found[0] if len(found) == 1 else None


def dequantised(path: Path) -> Path:
    """The folder of a GGUF file's model, with weights in float32; made once, in the user's cache.

    Raises:
        MissingResourceError: As ``read_header``.
        ModelError: As ``read_header`` and ``config_of``; or transformers cannot read the model or tokenizer.
    """
    header = read_header(path)

    def convert(folder: Path) -> None:
        megabytes = 4 * header.num_values / 1e6
        note(f"{path}: {header.quantisation}; dequantised once, to {megabytes:,.0f} MB")
        with doing(f"dequantising {path.name}"):
            _convert(path, header, folder)

    return cached_folder(path, convert)


def _convert(path: Path, header: Header, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils import logging

    def as_ours(error: BaseException) -> ModelError:
        return ModelError(
            f"{path}: transformers cannot read this GGUF file ({first_line(error)}); expected a causal "
            f"language model of the families {listed(FAMILIES)}; take its folder with safetensors"
        )

    verbosity, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # otherwise importing deepspeed prints a warning
    try:
        with TemporaryDirectory() as alone, foreign_errors(as_ours, is_quiet=True):
            file = Path(alone, "model.gguf")  # a tokenizer.json beside it would be read instead of its own
            file.symlink_to(path.absolute())
            config = config_of(file, header, place=str(path))
            tokenizer = _with_words(AutoTokenizer.from_pretrained(alone, gguf_file=file.name), header, path)  # nosec B615
            with redirect_stderr(io.StringIO()):  # the reader's own progress bar
                loaded: Any = AutoModelForCausalLM.from_pretrained(  # nosec B615  # a folder
                    alone,
                    gguf_file=file.name,
                    config=config,
                    dtype=torch.float32,
                    quantization_config=GgufConfig(dequantize=True),
                    output_loading_info=True,
                )
            model, info = loaded
            if absent := sorted(info["missing_keys"]):
                raise ModelError(f"{path}: {len(absent)} weights are missing (first: {absent[0]})")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def config_of(path: Path, header: Header, *, place: str) -> Any:  # transformers' configurations
    """The configuration that a file's metadata describe, with every weight of the file in its place.

    Raises:
        ModelError: Another family; parts that transformers would drop; or other weights than described.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = header.fields
    architecture = fields.get("general.architecture")
    if architecture not in FAMILIES:
        raise ModelError(
            f"{place}: general.architecture {str(architecture)[:80]!r} found; GGUF files are read of "
            f"{listed(FAMILIES)}; take the model's folder with safetensors"
        )
    own = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
    if faults := _unreadable(own):
        raise ModelError(
            f"{place}: {'; '.join(faults)}, which transformers does not read from GGUF files; take the "
            "model's folder with safetensors"
        )
    layers = own.get("block_count")
    if not isinstance(layers, int) or not 0 < layers <= len(header.tensors):
        raise ModelError(f"{place}: block_count {layers} found, with {len(header.tensors)} tensors")
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)  # nosec B615  # a folder
    for name, key in _UNREAD.get(config.model_type, {}).items():
        setattr(config, name, own.get(key))
    if (factor := own.get("rope.scaling.factor")) is not None and own.get("rope.scaling.type") == "linear":
        config.rope_parameters |= {"rope_type": "linear", "factor": factor}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    needed = sum(parameter.numel() for parameter in empty.parameters())
    if needed != header.num_values:
        raise ModelError(
            f"{place}: {header.num_values:,} weights found; expected {needed:,} by its metadata, of a "
            f"{config.model_type}; it has parts that transformers does not read, or is damaged; take the "
            "model's folder with safetensors"
        )
    return config


def _unreadable(own: dict[str, Value]) -> list[str]:
    """What a model has that transformers would leave out."""
    faults = [f"{key} {own[key]}" for key in _NO_PART if own.get(key)]
    if (scaling := own.get("rope.scaling.type", "none")) not in ("none", "linear"):
        faults.append(f"rope.scaling.type {scaling}")
    heads, width = own.get("attention.head_count"), own.get("embedding_length")
    turned = own.get("rope.dimension_count")
    if isinstance(heads, int) and isinstance(width, int) and heads > 0 and turned is not None:
        whole = own.get("attention.key_length", width // heads)
        if turned != whole:
            faults.append(f"rope.dimension_count {turned} of {whole}")
    return faults


def _with_words(tokenizer: Any, header: Header, path: Path) -> Any:  # transformers' types of tokenizers
    """The tokenizer that splits words as the file says, where transformers' reader does not know that."""
    kind = header.fields.get("tokenizer.ggml.pre")
    if header.fields.get("tokenizer.ggml.model") != "gpt2" or kind in (None, "gpt-2", *_known_words()):
        return tokenizer
    before = tokenizers.pre_tokenizers
    if kind in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = before.Sequence(
            [before.Digits(individual_digits=True), before.ByteLevel(add_prefix_space=False)]
        )
    else:
        note(f"{path}: tokenizer.ggml.pre {kind!r} is not known here; text is split into words as by default")
    return tokenizer


def _known_words() -> tuple[str, ...]:
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:
        return ()
    return tuple(GGUF_PRE_TOKENIZER_SPLITS)
