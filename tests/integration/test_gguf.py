"""Models as GGUF files: their weights bit for bit, their tokenizers, and files that are refused."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stlm_kd import load_recipe, plan
from stlm_kd.artifacts.hashing import CACHE
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.load import load_config, load_language_model
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.publishing.export import export
from stlm_kd.sharing.gguf_header import read_header
from tests.support.exported import saved

pytestmark = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
WIDE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file of a small Llama, and the folder of dequantised models."""
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder / "cache"))
        export(str(saved(folder / "student", "llama", **WIDE)), to="gguf", output=folder / "f32.gguf")
        yield folder / "f32.gguf"


def rewritten(source: Path, target: Path, kind: str = "F32", *, without: str = "", **changed: Any) -> Path:
    """A copy with matrices of another type, fields changed (``_`` for ``.``), or a tensor left out."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
    from gguf.quants import quantize

    reader, type_ = GGUFReader(source), GGMLQuantizationType[kind]
    writer = GGUFWriter(target, changed.pop("architecture", "llama"))
    for name, field in reader.fields.items():
        if name != "general.architecture" and not name.startswith("GGUF."):
            value = changed.pop(name.replace(".", "_"), field.contents())
            writer.add_key_value(
                name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None
            )
    for name, text in changed.items():
        writer.add_string(name, text)
    for tensor in reader.tensors:
        if tensor.name != without:
            is_matrix = len(tensor.shape) == 2
            data = quantize(tensor.data, type_) if is_matrix else tensor.data
            writer.add_tensor(tensor.name, data, raw_dtype=type_ if is_matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def of_package(path: Path) -> dict[str, np.ndarray]:
    """The weights as the package gguf dequantises them, by their names in transformers."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    names = {"token_embd": "embed_tokens", "output_norm": "norm"}
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    parts |= {"attn_output": "self_attn.o_proj", "attn_norm": "input_layernorm"}
    parts |= {"ffn_norm": "post_attention_layernorm"}
    parts |= {f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    found = {}
    for tensor in GGUFReader(path).tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        part, *rest = tensor.name.removesuffix(".weight").split(".")
        name = f"layers.{rest[0]}.{parts[rest[1]]}" if rest else names[part]
        if name.endswith(("q_proj", "k_proj")):  # neighbouring rows of a head are half a head apart
            values = values.reshape(-1, 8, 2, 64).swapaxes(1, 2).reshape(values.shape)
        found[f"model.{name}.weight"] = values
    return found


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
def test_weights_are_those_that_the_package_dequantises(shared: Path, tmp_path: Path, kind: str) -> None:
    path = rewritten(shared, tmp_path / "of-type.gguf", kind)
    model = load_language_model(str(path), "clm")
    state = model.state_dict()
    expected = of_package(path)
    assert {*state} - {"lm_head.weight"} == {*expected}
    for name, values in expected.items():
        assert state[name].dtype == torch.float32
        assert np.array_equal(state[name].numpy(), values), name
    assert read_header(path).quantisation.startswith(kind)
    assert model.name_or_path == str(path)


def test_the_tokenizer_and_the_configuration_are_the_models(shared: Path) -> None:
    own, found = (load_tokenizer(str(name)) for name in (shared.parent / "student", shared))
    for text in ("A cat, 1234.\n\n  naïve 日本", "it's"):
        ids = [one(text, add_special_tokens=False)["input_ids"] for one in (own, found)]
        assert ids[0] == ids[1]
    assert found.name_or_path == str(shared)
    folder = shared.parent / "alone"
    folder.mkdir(exist_ok=True)
    (folder / "model.gguf").write_bytes(shared.read_bytes())
    assert load_config(str(folder)).to_dict() | {"_name_or_path": ""} == (
        load_config(str(shared)).to_dict() | {"_name_or_path": ""}
    )
    assert model_identity(str(folder)) == model_identity(str(shared))


def test_digits_are_apart_where_the_file_says_so(shared: Path, tmp_path: Path) -> None:
    path = rewritten(shared, tmp_path / "digits.gguf", tokenizer_ggml_pre="smollm")
    splitter = load_tokenizer(str(path)).backend_tokenizer.pre_tokenizer
    assert [word for word, _ in splitter.pre_tokenize_str("in 123")] == ["in", "Ġ", "1", "2", "3"]


def test_the_plan_names_the_quantisation(shared: Path, tmp_path: Path) -> None:
    path = rewritten(shared, tmp_path / "teacher.gguf", "Q8_0")
    recipe = load_recipe("sample-two-teachers", [f"teachers=[{{model: {path}, name: big, adapt: {{}}}}]"])
    assert "teacher big: the weights of teacher.gguf are Q8_0" in plan(recipe).text
    assert not plan(recipe).missing


def test_the_cache_is_checked_and_what_is_unused_is_deleted(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path))
    loaded = load_language_model(str(shared), "clm").state_dict()
    original = {name: values.clone() for name, values in loaded.items()}  # they are mapped from the file
    (folder,) = (path for path in (tmp_path / "gguf").iterdir() if path.is_dir())
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    faults: list[Callable[[], object]] = [
        lambda: weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        weights.unlink,
        lambda: (folder / "added.json").write_text("{}"),
        lambda: (folder / "manifest.json").write_text("[]"),
    ]
    for fault in faults:
        fault()
        state = load_language_model(str(shared), "clm").state_dict()
        assert all(torch.equal(state[name], original[name]) for name in original)
    assert weights.read_bytes() == content and not (folder / "added.json").exists()

    month_ago = time.time() - 31 * 24 * 3600
    os.utime(folder / "manifest.json", (month_ago, month_ago))
    load_language_model(str(shared), "clm")  # a use, so it is kept
    load_language_model(str(rewritten(shared, tmp_path / "f16.gguf", "F16")), "clm")
    assert folder.is_dir()
    os.utime(folder / "manifest.json", (month_ago, month_ago))
    load_language_model(str(rewritten(shared, tmp_path / "q8.gguf", "Q8_0")), "clm")
    left = [path for path in (tmp_path / "gguf").iterdir() if path.is_dir()]
    assert folder not in left and len(left) == 2


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "magic": (lambda a, b: b.write_bytes(b"GGUX" + a.read_bytes()[4:]), "not b'GGUF'"),
    "version": (lambda a, b: b.write_bytes(b"GGUF\x01" + a.read_bytes()[5:]), "version 1 found"),
    "many": (
        lambda a, b: b.write_bytes(a.read_bytes()[:8] + b"\xff" * 8 + a.read_bytes()[16:]),
        "tensors stated",
    ),
    "cut header": (lambda a, b: b.write_bytes(a.read_bytes()[:900]), "within its header"),
    "cut weights": (lambda a, b: b.write_bytes(a.read_bytes()[:-64]), "are stated, in a file of"),
    "family": (lambda a, b: rewritten(a, b, architecture="rwkv7"), "general.architecture 'rwkv7' found"),
    "layers": (lambda a, b: rewritten(a, b, llama_block_count=2**31), "block_count 2147483648 found"),
    "width": (lambda a, b: rewritten(a, b, llama_feed_forward_length=2**30), "weights found; expected"),
    "tensor": (lambda a, b: rewritten(a, b, without="output_norm.weight"), "weights found; expected"),
    "rope": (lambda a, b: rewritten(a, b, **{"llama.rope.scaling.type": "yarn"}), "rope.scaling.type yarn"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_damaged_and_unknown_files_are_refused(fault: str, shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    damage, words = REFUSED[fault]
    damage(shared, path)
    with pytest.raises(ModelError) as refused:
        load_language_model(str(path), "clm")
    assert words in str(refused.value) and str(refused.value).startswith(f"{path}: ")
    assert "\n" not in str(refused.value)


def test_any_cut_or_changed_header_is_one_message(shared: Path, tmp_path: Path) -> None:
    content, path = shared.read_bytes(), tmp_path / "bad.gguf"
    random = np.random.default_rng(0)
    for place in random.integers(0, 12_000, 150).tolist():
        changed = bytearray(content)
        changed[place : place + 8] = random.bytes(8) if place % 2 else b"\xff" * 8
        path.write_bytes(changed if place % 3 else content[:place])
        try:
            read_header(path)
        except ModelError as error:
            assert str(error).startswith(f"{path}: ")


def test_several_files_and_a_missing_package_are_named(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="2 GGUF files found"):
        load_config(str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingResourceError, match=r"needs the package gguf.*stlm-kd\[export\]"):
        load_config(str(shared))
