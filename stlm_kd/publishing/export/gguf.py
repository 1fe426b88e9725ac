"""Write a causal language model as GGUF, the file format of llama.cpp.

Gerganov et al., https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Names of tensors come from the
package gguf; each file is read back by transformers' own reader, which shares no code with this module.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stlm_kd.errors import ModelError, listed
from stlm_kd.models.checkpoints.reloading import TEXTS
from stlm_kd.models.load import quietly
from stlm_kd.publishing.export.gguf_tokenizer import add_tokenizer
from stlm_kd.publishing.export.job import ExportJob
from stlm_kd.sharing.gguf import config_of
from stlm_kd.sharing.gguf_header import read_header

_WORDS = "It's 12345 o'clock.\n\n\tTHEY'LL say: \"x_1 = f(2);\"\r\n\n  Done."
"""What tokenizers split into words differently: contractions, numbers, signs before line ends."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How a family is written.

    Attributes:
        architecture: Its name in GGUF.
        required: Fields of its configuration that have one possible value in llama.cpp.
        is_interleaved: Whether rotary positions turn neighbouring rows of a head, not rows half a head apart.
        is_transposed: Whether the model's linear weights are stored as (in, out).
        free_head: Whether heads may have another width than hidden_size / num_attention_heads.
    """

    architecture: str
    required: dict[str, object]
    is_interleaved: bool = False
    is_transposed: bool = False
    free_head: bool = False


_SILU: dict[str, object] = {"hidden_act": "silu"}
_LLAMA = _Family(
    "llama",
    {**_SILU, "attention_bias": False, "mlp_bias": False},
    is_interleaved=True,
    free_head=True,
)
_FAMILIES = {
    "gpt2": _Family(
        "gpt2",
        {
            "activation_function": "gelu_new",
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
        },
        is_transposed=True,
    ),
    "llama": _LLAMA,
    "mobillama": _LLAMA,  # the shared network is written once per layer
    "mistral": _LLAMA,
    "qwen2": _Family("qwen2", _SILU),
    "qwen3": _Family(
        "qwen3",
        {**_SILU, "attention_bias": False},
        free_head=True,
    ),
    "phi3": _Family("phi3", _SILU),
}


def write_gguf(path: Path, job: ExportJob) -> None:
    """Write model and tokenizer into one file.

    Raises:
        ModelError: GGUF has no equal model or tokenizer.
    """
    family = _family_of(job)
    from gguf import GGUFWriter

    with closing(GGUFWriter(path, family.architecture)) as writer:
        _add_metadata(writer, job, family)
        add_tokenizer(writer, job.tokenizer, rows=_rows(job.model), name=job.name)
        for name, tensor in _tensors(job, family):
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()


def check_gguf(path: Path, job: ExportJob) -> float:
    """Read the file by transformers and return the largest difference of logits.

    Raises:
        ModelError: The file's tokenizer gives other ids.
    """
    with TemporaryDirectory() as folder:  # alone there: a tokenizer.json beside it would be read instead
        file = Path(folder, "model.gguf")
        file.symlink_to(path)
        _check_ids(AutoTokenizer.from_pretrained(folder, gguf_file=file.name), job)  # nosec B615  # a folder
        config = config_of(file, read_header(file), place=str(path))
        with quietly(local=True), redirect_stderr(io.StringIO()):  # its progress bar
            model = AutoModelForCausalLM.from_pretrained(  # nosec B615  # a folder
                folder, gguf_file=file.name, config=config, dtype=torch.float32
            ).eval()
    return job.largest_difference(lambda ids, mask: model(input_ids=ids, attention_mask=mask).logits)


def _check_ids(found: Any, job: ExportJob) -> None:  # transformers' types of tokenizers lack __call__
    # Before a text that begins with a blank, transformers' reader puts no second one, unlike llama.cpp.
    for text in [text.strip() for text in (*TEXTS, _WORDS)]:
        own, ids = (one(text, add_special_tokens=False)["input_ids"] for one in (job.tokenizer, found))
        if own != ids:
            raise ModelError(
                f"{job.name}: the tokenizer of the GGUF file gives other ids for {text!r} than its own; "
                "nothing is written; export it to onnx"
            )


def _family_of(job: ExportJob) -> _Family:
    """The family's row.

    Raises:
        ModelError: GGUF lacks the family, or llama.cpp a part of this model.
    """
    config = job.model.config
    family = _FAMILIES.get(config.model_type)
    if family is None or not type(job.model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelError(
            f"{job.name}: a {type(job.model).__name__}; gguf is written for causal language models of the "
            f"families {listed(sorted(_FAMILIES))}; export it to onnx"
        )
    rope = getattr(config, "rope_parameters", None) or {}
    width = _head_width(config)
    window = getattr(config, "sliding_window", None)
    faults = [
        f"{name}: {getattr(config, name)!r} found, expected {value!r}"
        for name, value in family.required.items()
        if getattr(config, name, value) != value
    ]
    if rope.get("rope_type", "default") not in ("default", "linear"):
        faults.append(f"rope_type: {rope['rope_type']!r} found, expected 'default' or 'linear'")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        faults.append(f"partial_rotary_factor: {rope['partial_rotary_factor']} found, expected 1.0")
    if window is not None and window < config.max_position_embeddings:
        faults.append(f"sliding_window: {window} found, expected null or at least max_position_embeddings")
    if not family.free_head and width * config.num_attention_heads != config.hidden_size:
        faults.append(f"head_dim: {width} found, expected hidden_size / num_attention_heads")
    if faults:
        raise ModelError(
            f"{job.name}: this {config.model_type} cannot be written as gguf ({'; '.join(faults)}); export "
            "it to onnx"
        )
    return family


def _add_metadata(writer: Any, job: ExportJob, family: _Family) -> None:
    from gguf import LlamaFileType, RopeScalingType

    config: Any = job.model.config
    writer.add_name(Path(job.name).name)
    writer.add_file_type(LlamaFileType.ALL_F32 if job.dtype == "f32" else LlamaFileType.MOSTLY_F16)
    writer.add_vocab_size(_rows(job.model))
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if family.architecture == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    width = _head_width(config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _tensors(job: ExportJob, family: _Family) -> Iterator[tuple[str, Tensor]]:
    """Each tensor with its name in GGUF; norms, biases and positions stay float32."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    config: Any = job.model.config
    (number,) = (key for key, value in MODEL_ARCH_NAMES.items() if value == family.architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    head, embeddings = job.model.get_output_embeddings(), job.model.get_input_embeddings()
    assert head is not None and embeddings is not None
    for name, tensor in job.model.state_dict().items():
        if name == "lm_head.weight" and head.weight is embeddings.weight:
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        if family.is_transposed and ".c_" in name and name.endswith(".weight"):
            tensor = tensor.T
        if family.is_interleaved and ".q_proj." in name:
            tensor = _interleaved(tensor, config.num_attention_heads)
        if family.is_interleaved and ".k_proj." in name:
            tensor = _interleaved(tensor, config.num_key_value_heads)
        is_matrix = tensor.dim() == 2 and ".wpe." not in name
        yield (
            found,
            tensor.to(torch.float16 if is_matrix and job.dtype == "f16" else torch.float32).contiguous(),
        )


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows i and i + half of each head become neighbours, as in Meta's own weights."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _head_width(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rows(model: PreTrainedModel) -> int:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings.num_embeddings
