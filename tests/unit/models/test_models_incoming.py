"""What a checkpoint brings along: generation settings that cannot be saved, weights that are no numbers."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.checkpoints.generation_config import mend_generation_config
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.models.vocabulary import replace_vocabulary
from tests.support.pico import pico_model
from tests.support.vocab_pico import byte_level

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = pico_model("llama", vocabulary=len(byte_level()))
    save_model(model, byte_level(), tmp_path / "m")
    return tmp_path / "m"


def loaded(folder: Path) -> PreTrainedModel:
    return load_language_model(str(folder), "clm")


def with_settings(folder: Path, settings: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps(settings))


SAMPLING = {
    "temperature": st.sampled_from([None, 0.6, 1.0]),
    "top_p": st.sampled_from([None, 0.9, 1.0]),
    "top_k": st.sampled_from([None, 0, 50, 20]),
    "min_p": st.sampled_from([None, 0.1]),
    "typical_p": st.sampled_from([None, 0.5]),
    "epsilon_cutoff": st.sampled_from([None, 0.1]),
    "num_beams": st.sampled_from([None, 1, 4]),
    "early_stopping": st.sampled_from([None, True, False, "never"]),
    "length_penalty": st.sampled_from([None, 1.0, 2.0]),
    "return_dict_in_generate": st.booleans(),
    "output_scores": st.booleans(),
    "pad_token_id": st.sampled_from([None, -1, 3]),
    "eos_token_id": st.sampled_from([None, 2, [2, 3]]),
    "do_sample": st.sampled_from([None, False, True]),
    "max_new_tokens": st.sampled_from([None, 7]),
    "repetition_penalty": st.sampled_from([None, 1.1]),
}


def strictly_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.fixed_dictionaries({}, optional=SAMPLING))
def test_what_transformers_refuses_is_dropped_and_nothing_else(
    fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = GenerationConfig()
    for name, value in fields.items():
        setattr(config, name, value)
    before = copy.deepcopy(config)
    model = cast("PreTrainedModel", SimpleNamespace(can_generate=lambda: True, generation_config=config))
    mend_generation_config(model, place="some/model")
    assert strictly_valid(config)
    changed = {name for name in SAMPLING if getattr(config, name) != getattr(before, name)}
    if strictly_valid(before):
        assert not changed
    assert not changed & {"eos_token_id", "max_new_tokens", "repetition_penalty"}
    for name in changed:  # none was dropped to no purpose
        again = copy.deepcopy(config)
        setattr(again, name, getattr(before, name))
        assert not strictly_valid(again), name


def test_a_greedy_teacher_with_a_temperature_is_adapted_and_saved(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_settings(folder, {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 9})
    with caplog.at_level(logging.WARNING, "stlm_kd"):
        model = loaded(folder)
    (line,) = caplog.messages
    assert f"{folder}/generation_config.json: dropped temperature 0.6, top_p 0.9" in line
    tokenizer = byte_level()
    replace_vocabulary(model, torch.randn(len(tokenizer), 16), None, tokenizer=tokenizer)
    save_model(model, tokenizer, folder.with_name("saved"))
    saved = json.loads((folder.with_name("saved") / "generation_config.json").read_text())
    assert saved["eos_token_id"] == tokenizer.eos_token_id and saved["max_new_tokens"] == 9
    assert "temperature" not in saved and "top_p" not in saved


def test_settings_that_hold_together_are_kept_without_a_note(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_settings(folder, {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    with caplog.at_level(logging.WARNING, "stlm_kd"):
        config = loaded(folder).generation_config
    assert not caplog.messages and (config.temperature, config.top_p) == (0.6, 0.9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_return_sequences": 2},
        {"max_new_tokens": "x"},
        {"suppress_tokens": 3},
        {"pad_token_id": "x"},
        [1],
    ],
)
def test_settings_that_cannot_be_read_are_refused_by_the_file(folder: Path, wrong: object) -> None:
    with_settings(folder, wrong)
    with pytest.raises(ModelError, match=r"generation_config\.json: transformers cannot read it"):
        loaded(folder)


def rewritten(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """The same weights, but for one."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[WEIGHT] = change(weights[WEIGHT])
    path.unlink()
    save_file(weights, path, {"format": "pt"})


def planted(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[3, 4] = value
        return weight

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(folder: Path, value: float) -> None:
    rewritten(folder, planted(value))
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: tensor {WEIGHT} has 1 values of 512 that are NaN"
    ):
        loaded(folder)


def test_large_finite_weights_whose_sum_overflows_are_loaded(folder: Path) -> None:
    rewritten(folder, lambda weight: torch.full_like(weight, 3e38))
    assert loaded(folder).get_parameter(WEIGHT)[0, 0].item() == pytest.approx(3e38)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_a_weight_of_another_type_is_refused_by_name(folder: Path, dtype: torch.dtype) -> None:
    rewritten(folder, lambda weight: (10 * weight).to(dtype))
    with pytest.raises(
        ModelError, match=rf"model\.safetensors: tensor {WEIGHT} is of type \w+; expected float"
    ):
        loaded(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_point_type_is_loaded(folder: Path, dtype: torch.dtype) -> None:
    rewritten(folder, lambda weight: weight.to(dtype))
    assert loaded(folder).dtype == torch.float32


def test_masks_and_positions_in_a_file_may_be_integers(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    more = {
        "model.layers.0.self_attn.bias": torch.ones(4, 4, dtype=torch.uint8),
        "position_ids": torch.arange(9),
    }
    save_file({**weights, **more}, path, {"format": "pt"})
    found = loaded(folder).state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def test_of_several_files_the_one_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = planted_weights = load_file(path)
    planted_weights[WEIGHT] = planted(float("nan"))(weights[WEIGHT])
    path.unlink()
    names = sorted(weights)
    parts = {"model-1.safetensors": names[:3], "model-2.safetensors": names[3:]}
    for file, keys in parts.items():
        save_file({key: weights[key] for key in keys}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in parts.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=rf"{index['weight_map'][WEIGHT]}: tensor {WEIGHT} has 1 values"):  # type: ignore[index]  # a mapping
        loaded(folder)


def configured(folder: Path, **fields: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", None])
def test_quantized_weights_are_refused_by_name(folder: Path, method: str | None) -> None:
    configured(folder, quantization_config={"quant_method": method, "load_in_8bit": True, "bits": 4})
    with pytest.raises(ModelError, match=f"quantization_config found .method: {method or 'not named'}"):
        loaded(folder)


def test_a_null_quantization_is_none(folder: Path) -> None:
    configured(folder, quantization_config=None)
    assert loaded(folder).config.model_type == "llama"


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
{extra}
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("part", ["AutoConfig", "AutoModelForCausalLM", None])
def test_a_package_that_trusted_code_lacks_is_named(
    folder: Path, part: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder.parent / "code"))
    classes = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnModel"}
    for name, made in classes.items():
        extra = "import surely_not_installed\n" if name == part else ""
        (folder / f"{made.lower()}.py").write_text(OWN_CODE.format(extra=extra))
    named = {name: f"{made.lower()}.{made}" for name, made in classes.items()}
    configured(folder, auto_map=named, model_type="own-llama")
    if part is None:
        load_language_model(str(folder), "clm", trust_remote_code=True)
        return
    with pytest.raises(MissingResourceError, match="surely_not_installed"):
        load_language_model(str(folder), "clm", trust_remote_code=True)
