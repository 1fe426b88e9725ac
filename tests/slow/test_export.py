"""llama.cpp continues as the model that was exported, and every family has an ONNX file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from stlm_kd.data.tokenizers import ids_from_start, load_tokenizer
from stlm_kd.publishing.export import FORMATS, export
from tests.support.exported import saved, split_as_qwen2
from tests.support.pico import ALL_FAMILIES

LLAMA_CPP = find_spec("gguf") is not None and find_spec("llama_cpp") is not None
TOLERANCE = 5e-3
"""Of logits, relative to the largest: llama.cpp rounds keys, values and GELU to half precision."""

ONNX = all(find_spec(package) is not None for package in FORMATS["onnx"].packages)


@pytest.mark.long
@pytest.mark.skipif(not LLAMA_CPP, reason="gguf or llama-cpp-python is not installed")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
        ("llama", {"head_dim": 6, "tied": False}),
        ("mobillama", {}),
        ("mistral", {}),
        ("qwen2", {"tokenizer": split_as_qwen2}),
        ("qwen3", {}),
        ("phi3", {}),
        ("gpt2", {}),
        ("gpt2", {"n_inner": 24, "tied": False}),
        ("stories260K", {}),
    ],
)
def test_llama_cpp_gives_the_same_tokens(
    family: str, options: dict[str, object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    from llama_cpp import Llama

    if family == "stories260K":
        folder = request.getfixturevalue("shared_data") / "models" / family
    else:
        folder = saved(tmp_path / "student", family, **options)  # type: ignore[arg-type]
    path = export(str(folder), to="gguf", output=tmp_path / "student.gguf").path
    text = "The cat sat on the mat.\n\nShe didn't see 42 dogs"
    prompts = ids_from_start(load_tokenizer(str(folder)), [text, "  two blanks"])
    ids = [*prompts[0]]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        while len(ids) < 64:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected = model(torch.tensor([ids])).logits[0]
    runner = Llama(str(path), n_ctx=64, n_threads=1, n_threads_batch=1, verbose=False, logits_all=True)
    assert [runner.tokenize(one, add_bos=True) for one in (text.encode(), b"  two blanks")] == prompts
    runner.eval(ids)
    found = torch.from_numpy(runner.scores.copy())
    runner.close()
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < TOLERANCE * scale
    first, second = expected.topk(2).values.T
    is_clear = first - second > 2 * TOLERANCE * scale
    assert is_clear.sum() > 32
    assert torch.equal(found.argmax(-1)[is_clear], expected.argmax(-1)[is_clear])


@pytest.mark.long
@pytest.mark.skipif(not ONNX, reason="onnx, onnxscript or onnxruntime is not installed")
@pytest.mark.parametrize(
    ("family", "classifies"),
    [(family, False) for family in ALL_FAMILIES]
    + [(family, True) for family in ALL_FAMILIES if family != "mobillama"],  # it has no classifier
)
def test_every_family_has_an_onnx_file(family: str, classifies: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", family, classifies=classifies)
    assert export(str(folder), to="onnx", output=tmp_path / "onnx").difference < 1e-5
