"""Exported models: what other programs read gives the same logits and ids; what they cannot is refused."""

from __future__ import annotations

import json
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from stlm_kd.cli.group import Command, Commands
from stlm_kd.cli.models import export as command
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError, UsageError
from stlm_kd.publishing.export import FORMATS, export
from tests.support.exported import QWEN2_WORDS, ROWS, byte_level, saved, split_as_qwen2
from tests.support.paths import ROOT
from tests.support.tokenizer_kinds import unigram, word_piece

needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")
needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in FORMATS["onnx"].packages),
    reason="onnx, onnxscript or onnxruntime is not installed",
)
FAMILIES = ("gpt2", "llama", "mobillama", "mistral", "qwen2", "qwen3", "phi3")


def fields_of(path: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@needs_gguf
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gguf_file_gives_the_models_logits(family: str, tied: bool, tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", family, tied=tied)
    report = export(str(folder), to="gguf", output=tmp_path / "student.gguf")
    assert report.difference < 1e-6 and report.num_bytes == report.path.stat().st_size
    fields = fields_of(report.path)
    architecture = {"mobillama": "llama", "mistral": "llama"}.get(family, family)
    assert fields["general.architecture"] == architecture
    own = {key.removeprefix(f"{architecture}."): value for key, value in fields.items()}
    expected = {"context_length": 64, "embedding_length": 16, "block_count": 2, "attention.head_count": 2}
    assert {key: own[key] for key in expected} == expected
    if family != "gpt2":
        kept = (own["attention.head_count_kv"], own["attention.key_length"], own["rope.freq_base"])
        assert kept == (2 if family == "mobillama" else 1, 8, 10000.0)
    assert len(fields["tokenizer.ggml.tokens"]) == ROWS and fields["tokenizer.ggml.tokens"][-1] == "[PAD300]"


@needs_gguf
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
        ("llama", {"head_dim": 6, "rms_norm_eps": 0.1}),
        ("gpt2", {"n_inner": 24, "layer_norm_epsilon": 0.1}),
    ],
)
def test_other_fields_of_the_configuration_are_kept(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = saved(tmp_path / "student", family, **changes)
    assert export(str(folder), to="gguf", output=tmp_path / "student.gguf").difference < 1e-6


@needs_gguf
def test_half_precision_halves_the_matrices_and_stays_within_its_tolerance(tmp_path: Path) -> None:
    folder = str(saved(tmp_path / "student", "llama"))
    full, half = (export(folder, to="gguf", output=tmp_path / f"{d}.gguf", dtype=d) for d in ("f32", "f16"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2)
    assert full.num_bytes - half.num_bytes == 2 * matrices
    assert 1e-5 < half.difference <= half.tolerance == 1e-2


@needs_gguf
@pytest.mark.parametrize("kind", [byte_level, split_as_qwen2])
def test_a_gguf_file_gives_the_tokenizers_ids_and_ends(kind: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", "qwen2", tokenizer=kind)
    report = export(str(folder), to="gguf", output=tmp_path / "student.gguf")
    fields = fields_of(report.path)
    assert fields["tokenizer.ggml.pre"] == {"byte_level": "gpt-2", "split_as_qwen2": "qwen2"}[kind.__name__]
    own, found = kind(), AutoTokenizer.from_pretrained(tmp_path, gguf_file=report.path.name)
    for text in ("the cat ran, 1234 homes!", "a<|endoftext|>the mat\n\n don't", "日本 naïve\t\t"):
        assert found(text, add_special_tokens=False)["input_ids"] == own(text)["input_ids"]
    ends = [fields[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos")]
    assert ends == [own.eos_token_id] * 2 and fields["tokenizer.ggml.add_bos_token"]


@needs_gguf
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_real_model_with_a_sentencepiece_tokenizer(dtype: str, shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models" / "stories260K"
    if not source.is_dir():
        pytest.skip("no models/stories260K in STLM_KD_DATA")
    report = export(str(source), to="gguf", output=tmp_path / "stories.gguf", dtype=dtype)
    assert report.difference < {"f32": 3e-6, "f16": 2e-3}[dtype]
    fields = fields_of(report.path)
    assert fields["tokenizer.ggml.model"] == "llama"
    own, found = (
        load_tokenizer(str(source)),
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="stories.gguf"),
    )
    text = "Once upon a time, there was a little girl named Lily. She loved 7 café 日本!"
    assert (
        found(text, add_special_tokens=False)["input_ids"] == own(text, add_special_tokens=False)["input_ids"]
    )


@needs_gguf
@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("bert", {}, r"BertForMaskedLM; gguf is written for .* gpt2, llama.*; export it to onnx"),
        ("gpt2", {"activation_function": "relu"}, r"activation_function: 'relu' found, expected 'gelu_new'"),
        ("llama", {"attention_bias": True}, "attention_bias: True found, expected False"),
        ("mistral", {"sliding_window": 8}, "sliding_window: 8 found, expected null or at least"),
        ("qwen2", {"head_dim": 6}, "head_dim: 6 found, expected hidden_size / num_attention_heads"),
        (
            "phi3",
            {
                "original_max_position_embeddings": 32,
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 10000.0,
                    "partial_rotary_factor": 1.0,
                    "short_factor": [1.0] * 4,
                    "long_factor": [2.0] * 4,
                    "original_max_position_embeddings": 32,
                },
            },
            "rope_type: 'longrope' found, expected 'default' or 'linear'",
        ),
        (
            "llama",
            {"tokenizer": word_piece},
            "neither a byte-level BPE .* export it to onnx",
        ),
        ("llama", {"tokenizer": unigram}, "its tokenizer is neither a byte-level BPE"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_by_name(
    family: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "student", family, **changes)
    with pytest.raises(ModelError, match=message):
        export(str(folder), to="gguf", output=tmp_path / "student.gguf")
    assert sorted(tmp_path.iterdir()) == [folder]


@needs_gguf
def test_a_file_that_differs_from_the_model_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "student", "llama")
    monkeypatch.setattr("stlm_kd.publishing.export.gguf._interleaved", lambda weight, heads: weight)
    with pytest.raises(ModelError, match=r"logits of its gguf export differ .* nothing is written"):
        export(str(folder), to="gguf", output=tmp_path / "student.gguf")
    monkeypatch.undo()
    monkeypatch.setattr("stlm_kd.publishing.export.gguf_tokenizer._WORDS", {QWEN2_WORDS: "llama-bpe"})
    other = saved(tmp_path / "other", "llama", tokenizer=split_as_qwen2)
    with pytest.raises(ModelError, match="its tokenizer is neither"):  # Llama 3 ignores merges
        export(str(other), to="gguf", output=tmp_path / "student.gguf")
    assert sorted(tmp_path.iterdir()) == [other, folder]


@needs_gguf
def test_a_tokenizer_that_a_file_cannot_describe_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "student", "llama", tokenizer=split_as_qwen2)
    monkeypatch.setattr("stlm_kd.publishing.export.gguf_tokenizer._WORDS", {QWEN2_WORDS: "gpt-2"})
    with pytest.raises(ModelError, match=r"of the GGUF file gives other ids for .* nothing is written"):
        export(str(folder), to="gguf", output=folder / "student.gguf")  # a right tokenizer.json beside it
    assert not [*tmp_path.rglob("*.gguf*")]


@needs_gguf
def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "student", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e6)
        model.model.layers[0].mlp.down_proj.weight.mul_(1e-6)
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match="differ from the model's by inf of the largest"):
        export(str(folder), to="gguf", output=tmp_path / "student.gguf", dtype="f16")
    assert export(str(folder), to="gguf", output=tmp_path / "student.gguf").difference < 1e-5


@needs_onnx
@pytest.mark.parametrize(
    ("family", "classifies"), [("bert", False), pytest.param("gpt2", True, marks=pytest.mark.long)]
)
def test_onnx_gives_the_models_logits_in_other_shapes(family: str, classifies: bool, tmp_path: Path) -> None:
    import onnxruntime

    folder = saved(tmp_path / "student", family, classifies=classifies)
    report = export(str(folder), to="onnx", output=tmp_path / "onnx")
    assert report.difference <= report.tolerance == 1e-4
    assert report.num_bytes == sum(file.stat().st_size for file in report.path.iterdir())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(report.path)
    batch = tokenizer(["the cat sat on the mat and ran home", "a dog"], padding=True, return_tensors="np")
    inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
    (found,) = onnxruntime.InferenceSession(report.path / "model.onnx").run(["logits"], inputs)
    if classifies:
        assert found.shape == (2, 3) and (report.path / "config.json").is_file()
        return
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([tokenizer("a dog")["input_ids"]])).logits[0].numpy()
    assert np.abs(found[1, : len(alone)] - alone).max() < 1e-5


@needs_onnx
def test_an_onnx_file_that_differs_or_fails_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "student", "distilbert")

    def off(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits + 0.01 * logits.abs().max()

    monkeypatch.setattr("stlm_kd.publishing.export.onnx._Logits.forward", off)
    with pytest.raises(ModelError, match=r"logits of its onnx export differ"):
        export(str(folder), to="onnx", output=tmp_path / "onnx")

    def data_dependent(self: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return input_ids + 1 if input_ids.sum() > 3 else input_ids

    monkeypatch.setattr("stlm_kd.publishing.export.onnx._Logits.forward", data_dependent)
    with pytest.raises(ModelError, match=r"cannot export this distilbert to onnx \([^\n]+\); try another"):
        export(str(folder), to="onnx", output=tmp_path / "onnx")
    assert sorted(tmp_path.iterdir()) == [folder]


def test_what_is_asked_wrongly_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there.gguf"
    there.write_text("kept")
    for options, message in (
        ({"to": "gguff", "output": tmp_path / "x"}, r"--to: no format 'gguff' \(did you mean gguf\?\)"),
        (
            {"to": "onnx", "output": tmp_path / "x", "dtype": "f16"},
            "--dtype: 'f16' found; onnx is written as f32",
        ),
        ({"to": "gguf", "output": there}, "there.gguf: exists already"),
    ):
        with pytest.raises(UsageError, match=message):
            export("none", **options)  # type: ignore[arg-type]
    monkeypatch.setattr("stlm_kd.publishing.export.formats.find_spec", lambda package: None)
    with pytest.raises(MissingResourceError, match="onnx, onnxscript, onnxruntime not installed; pip"):
        export("none", to="onnx", output=tmp_path / "x")
    assert there.read_text() == "kept"


@needs_gguf
@needs_onnx
def test_the_commands_of_the_page_on_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer(cls=Commands)
    app.command("export", cls=Command)(command)
    app.callback()(lambda: None)
    saved(tmp_path / "my-student", "llama")
    page = (ROOT / "docs" / "export.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("stlm-kd export my-student")]
    assert len(commands) == 3
    for line in commands:
        done = CliRunner().invoke(app, [*shlex.split(line)[1:], "--json"])
        assert done.exit_code == 0, done.output
        report = json.loads(done.stdout)
        assert Path(report["path"]).exists() and report["difference"] <= report["tolerance"]
    again = CliRunner().invoke(app, shlex.split(commands[0])[1:])
    assert again.exit_code == 2 and "exists already" in again.stderr
    Path("student.gguf").unlink()
    plain = CliRunner().invoke(app, shlex.split(commands[0])[1:])
    assert plain.stdout.startswith("student.gguf: 0.0 MB, f32; logits differ by at most ")
