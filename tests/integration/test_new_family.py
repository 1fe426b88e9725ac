"""A model family is one line in a user's module: it does all that a built-in one does, or is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

import stlm_kd
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models import capabilities
from stlm_kd.models.capabilities import check_forward, require_paths
from stlm_kd.models.load import save_model
from stlm_kd.models.students import student_from_layers
from tests.support.registries import unchanged_registries
from tests.support.road import ADAPT, distilled, student
from tests.support.road import stlm_kd as command

BLOCKS = {"stablelm": "layers", "phi": "layers", "starcoder2": "layers", "gpt_bigcode": "h"}
"""Families without a row of their own, which work."""
REFUSED = {
    "falcon": ("h", "hidden states cannot be read and exchanged in this falcon model .*returns tuple"),
    "gemma2": ("layers", "this gemma2 model's logits are not its head"),
    "mpt": ("blocks", "this mpt model does not accept an attention mask per pair of positions"),
    "bloom": ("h", "this bloom model does not accept an attention mask per pair of positions"),
    "phi": ("no.such", "in this phi model .*phi: no.such is not its list of blocks"),
}
SIZES = {
    "hidden_size": 16, "d_model": 16, "n_embd": 16, "intermediate_size": 32, "n_inner": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "n_heads": 2, "n_layers": 2, "n_layer": 2, "n_head": 2,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_positions": 64,
    "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
DROPOUT = ("attention_dropout", "hidden_dropout", "residual_dropout", "embedding_dropout", "resid_pdrop",
           "embd_pdrop", "attn_pdrop")  # fmt: skip


def built(family: str, vocabulary: int = 61) -> PreTrainedModel:
    known = CONFIG_MAPPING[family]()
    names = set(known.to_dict()) | set(known.attribute_map)
    fields = {name: value for name, value in SIZES.items() if name in names}
    fields |= {name: 0.0 for name in DROPOUT if name in names}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](vocab_size=vocabulary, **fields)).eval()


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(capabilities, "_works", set())
    monkeypatch.setenv("STLM_KD_IMPORT", "")
    with unchanged_registries():
        yield
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("family", BLOCKS)
def test_one_line_is_enough(family: str) -> None:
    stlm_kd.register_family(family, task="clm", blocks=BLOCKS[family])
    model = built(family)
    check_forward(model, context=24, name="student")
    require_paths(model, {"blocks", "maps"}, name="student")
    first = student_from_layers(model, [1], place="here")
    assert first.config.num_hidden_layers == 1


@pytest.mark.parametrize("family", REFUSED)
def test_what_does_not_work_is_refused_by_name(family: str) -> None:
    blocks, message = REFUSED[family]
    stlm_kd.register_family(family, task="clm", blocks=blocks)
    model = built(family)
    with pytest.raises(ModelError, match=message):
        check_forward(model, context=24, name="student")
        require_paths(model, {"blocks"}, name="student")


INSIDE = (
    "objectives=[{loss: labels}, {loss: forward_kl}, {loss: hint, teacher: t, sites: full}, "
    "{loss: attention_mse, teacher: t, sites: full}, {loss: diito, teacher: t}]"
)


@pytest.fixture
def module(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Imports a user's module that registers a family, as ``--import`` does."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def write(family: str, blocks: str) -> None:
        text = f"import stlm_kd\nstlm_kd.register_family({family!r}, task='clm', blocks={blocks!r})\n"
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")

    return write


@pytest.mark.parametrize("family", ["stablelm", "gpt_bigcode"])
def test_a_family_of_a_users_module_is_student_and_adapted_teacher(
    family: str, module: Callable[[str, str], None], place: Path, tmp_path: Path
) -> None:
    module(family, BLOCKS[family])
    other = load_tokenizer(str(place / "gpt2"))
    save_model(built(family, len(other)), other, tmp_path / "teacher")
    sizes = "hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2"
    sizes += ", num_key_value_heads: 2, intermediate_size: 32" if family == "stablelm" else ""
    teacher = f"teachers=[{{name: t, model: {tmp_path / 'teacher'}, adapt: {ADAPT.replace('4k', '1k')}}}]"
    changes = [teacher, INSIDE, f"student.architecture={{model_type: {family}, {sizes}}}", "train.steps=2"]
    assert command("--import", "mine", "recipe", "list").exit_code == 0
    run = distilled("taught", *changes, output_dir=tmp_path / "runs")
    loaded = AutoModelForCausalLM.from_pretrained(student(run) / "model")
    assert loaded.config.model_type == family
    halves = [teacher, INSIDE, "student={tokenizer: own, init_from: {teacher: t, layers: first}}"]
    run = distilled("taught", *halves, "train.steps=2", output_dir=tmp_path / "runs")
    assert AutoModelForCausalLM.from_pretrained(student(run) / "model").config.num_hidden_layers == 1


def test_a_family_that_cannot_be_adapted_is_refused_by_name(
    module: Callable[[str, str], None], place: Path, tmp_path: Path
) -> None:
    module("gemma", "layers")
    other = load_tokenizer(str(place / "gpt2"))
    save_model(built("gemma", len(other)), other, tmp_path / "teacher")
    teacher = f"teachers=[{{name: t, model: {tmp_path / 'teacher'}, adapt: {ADAPT}}}]"
    words = ["distill", "-r", "taught.yaml", teacher, "objectives=[{loss: labels}, {loss: forward_kl}]"]
    result = command("--import", "mine", *words, "--output-dir", str(tmp_path / "runs"))
    assert result.exit_code == 3
    assert "gemma: its vocabulary cannot be replaced: found GemmaTextScaledWordEmbedding" in result.stderr
    assert "Traceback" not in result.stderr and not list((tmp_path / "runs").rglob("checkpoints"))
