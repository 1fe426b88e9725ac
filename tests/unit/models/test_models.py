from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.load import count_parameters, load_language_model, save_model
from stlm_kd.models.presets import PRESETS
from stlm_kd.models.students import choose_layers, student_from_fields, student_from_layers
from tests.support.pico import FAMILIES, pico_model


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 262)


@pytest.fixture(scope="module")
def masked_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 266, masked=True)


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(8)[None]).logits


def test_the_47m_student_has_exactly_the_parameters_of_the_study() -> None:
    class Gpt2Sized:
        bos_token_id = eos_token_id = 50256
        cls_token_id = sep_token_id = mask_token_id = unk_token_id = pad_token_id = None

        def get_vocab(self) -> dict[str, int]:
            return {"<|endoftext|>": 50256}

    with torch.device("meta"):
        model = student_from_fields(PRESETS["stlm-47m"], Gpt2Sized(), task="clm", context=512, seed=0)
    assert count_parameters(model) == 47_203_328


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "stlm-47m"])
def test_every_preset_builds_and_is_named_after_its_size(
    preset: str, tokenizer: PreTrainedTokenizerFast, masked_tokenizer: PreTrainedTokenizerFast
) -> None:
    task = ARCHITECTURES[PRESETS[preset]["model_type"]].task
    own = masked_tokenizer if task == "mlm" else tokenizer
    model = student_from_fields(PRESETS[preset], own, task=task, context=64, seed=0)
    assert logits(model).shape == (1, 8, len(own))
    said = {"stlm-nano": 0.14e6, "stlm-bert-nano": 0.17e6, "stlm-2m": 1.8e6, "stlm-6m": 6.5e6}[preset]
    tokens = 700 if preset.endswith("nano") else 8192
    row = model.config.hidden_size + (task == "mlm")
    size = count_parameters(model) + (tokens - len(own)) * row
    assert size == pytest.approx(said, rel=0.04)


def test_the_same_seed_gives_the_same_student_and_leaves_the_global_generator_alone(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = (
        student_from_fields(PRESETS["stlm-nano"], tokenizer, task="clm", context=64, seed=seed)
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(logits(first), logits(same))
    assert not torch.equal(logits(first), logits(other))


def test_a_vocabulary_with_gaps_gets_a_row_for_its_largest_id() -> None:
    words = {"<|endoftext|>": 0, "the": 1, "cat": 2, "sat": 9}
    gaps = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="the")), eos_token="<|endoftext|>"
    )
    student = student_from_fields(PRESETS["stlm-nano"], gaps, task="clm", context=64, seed=0)
    assert len(gaps) == 4
    assert student(input_ids=torch.tensor([[0, 9]])).logits.shape == (1, 2, 10)


def test_a_student_gets_the_positions_that_the_data_needs(tokenizer: PreTrainedTokenizerFast) -> None:
    fields = {**PRESETS["stlm-nano"], "max_position_embeddings": 16}
    assert (
        student_from_fields(fields, tokenizer, task="clm", context=64, seed=0).config.max_position_embeddings
        == 64
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, "did you mean llama"),
        ({"model_type": "llama", "hiden_size": 8}, "did you mean hidden_size"),
        ({"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 4}, "at most 150,000,000"),
        ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}, "cannot be built"),
    ],
)
def test_a_wrong_architecture_is_refused_with_what_is_wrong(
    fields: dict[str, str | int], message: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ModelError, match=message):
        student_from_fields(fields, tokenizer, task="clm", context=64, seed=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_student_of_all_layers_is_the_teacher(family: str, tied: bool) -> None:
    teacher = pico_model(family, layers=3, tied=tied).eval()
    student = student_from_layers(teacher, [0, 1, 2], place="here")
    assert torch.equal(logits(student), logits(teacher))
    assert student.config.num_hidden_layers == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_of_some_layers_runs_just_these(family: str) -> None:
    teacher = pico_model(family, layers=4).eval()
    student = student_from_layers(teacher, "every-other", place="here")
    blocks = teacher.base_model.h if family == "gpt2" else teacher.base_model.layers
    for index in (3, 1):
        del blocks[index]
    for position, block in enumerate(blocks):
        block_attention = block.attn if family == "gpt2" else block.self_attn
        block_attention.layer_idx = position
    teacher.config.num_hidden_layers = 2
    assert torch.allclose(logits(student), logits(teacher), atol=1e-6)


def test_an_end_token_that_also_pads_is_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    shared = copy.deepcopy(tokenizer)
    shared.pad_token = shared.eos_token
    model = student_from_fields(PRESETS["stlm-nano"], shared, task="clm", context=64, seed=0)
    end = shared.eos_token_id
    model(input_ids=torch.tensor([[end, 5]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[end].abs().sum() > 0
    assert model.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("layers", [[0, 5], [1, 1], [2, 1], [-1]])
def test_layers_that_do_not_exist_or_repeat_are_refused(layers: list[int]) -> None:
    with pytest.raises(ModelError, match=r"the teacher has 4 layers; use different indices 0 to 3"):
        choose_layers(4, layers, place="student.init_from.layers")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_model_is_loaded_by_plain_transformers(
    family: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = pico_model(family).eval()
    save_model(model, tokenizer, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(plain), logits(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"name: not in the cache, and offline mode is on; unset"):
        load_language_model("nobody/nothing-of-that-name", "clm")
    with pytest.raises(MissingResourceError, match=r"no such folder .* and no Hub id"):
        load_language_model(str(tmp_path / "nothing"), "clm")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(MissingResourceError, match=r"a\.txt: a file; expected a model's folder or its id on"):
        load_language_model(str(tmp_path / "a.txt"), "clm")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingResourceError, match=r"without config\.json"):
        load_language_model(str(tmp_path / "empty"), "clm")


def saved(folder: Path) -> Path:
    pico_model("llama", tied=False).save_pretrained(folder)
    return folder


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        MissingResourceError, match=f"{folder}: no weights in this folder; expected model.safete"
    ):
        load_language_model(str(folder), "clm")
    torch.save({}, folder / "pytorch_model.bin")
    said = r"no model\.safetensors \(pytorch_model\.bin\); only safetensors .* convert what you trust by"
    with pytest.raises(MissingResourceError, match=said):
        load_language_model(str(folder), "clm")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_language_model(str(folder), "clm")


def test_weights_that_do_not_match_the_configuration_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    save_file({"something.else": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights are missing"):
        load_language_model(str(folder), "clm")


def test_a_model_that_brings_code_is_refused_without_the_flag(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "brand-new"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(ModelError, match="--trust-remote-code"):
        load_language_model(str(folder), "clm")


def test_weights_outside_the_folder_are_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    names = pico_model("llama", tied=False).state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../other.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names \.\./other\.safetensors"):
        load_language_model(str(folder), "clm")


def test_a_model_with_a_head_gets_no_other(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    with pytest.raises(ModelError, match="it has a head already"):
        load_language_model(str(folder), "clm", head_seed=0)
