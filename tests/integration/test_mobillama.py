"""One network for all layers: built, trained, saved, loaded here and by plain transformers, recognised."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError
from stlm_kd.models.architectures.mobillama import MobiLlamaConfig, MobiLlamaForCausalLM
from stlm_kd.models.load import count_parameters, load_config, load_language_model, save_model
from stlm_kd.training.checkpoint import load_model_tensors, model_tensors
from tests.support.pico import pico_model

LAYERS = 3


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(8)[None]).logits


def is_shared(model: PreTrainedModel) -> bool:
    first, *later = (layer.mlp for layer in model.model.layers)
    return (
        all(mlp is first for mlp in later)
        and sum(".mlp." in name for name, _ in model.named_parameters()) == 3
    )


def as_llama(model: PreTrainedModel) -> LlamaForCausalLM:
    """The same function as a plain Llama, each layer with its own copy of the network."""
    config = LlamaConfig(**{**model.config.to_dict(), "model_type": "llama"})
    plain = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def test_it_computes_what_a_llama_with_equal_networks_does() -> None:
    model = pico_model("mobillama", layers=LAYERS).eval()
    assert is_shared(model)
    assert torch.equal(logits(model), logits(as_llama(model)))


def test_the_gradient_of_the_network_is_the_sum_over_the_layers_and_one_step_moves_it_once() -> None:
    model = pico_model("mobillama", layers=LAYERS).double()
    plain = as_llama(model).double()
    for each in (model, plain):
        each(input_ids=torch.arange(8)[None]).logits.logsumexp(-1).sum().backward()
    for part in ("gate_proj", "up_proj", "down_proj"):
        weight = model.model.layers[0].mlp.get_submodule(part).weight
        copies = [layer.mlp.get_submodule(part).weight for layer in plain.model.layers]
        summed = torch.stack([copy.grad for copy in copies]).sum(0)
        assert torch.allclose(weight.grad, summed, rtol=1e-6, atol=1e-9)
        before = weight.detach().clone()
        torch.optim.SGD([p for p in model.parameters() if p is weight], lr=0.1).step()
        assert torch.allclose(weight, before - 0.1 * summed, rtol=1e-6, atol=1e-9)


def test_parameters_are_counted_once() -> None:
    """By hand: embedding; four projections and two norms a layer; one network of three; the last norm."""
    model = pico_model("mobillama", vocabulary=61, width=16, layers=LAYERS)
    assert (
        count_parameters(model)
        == model.num_parameters()
        == 61 * 16 + LAYERS * (4 * 16 * 16 + 2 * 16) + 3 * 16 * 32 + 16
    )


def test_a_checkpoint_of_training_holds_the_network_once_and_restores_it() -> None:
    model, other = pico_model("mobillama", layers=LAYERS), pico_model("mobillama", layers=LAYERS, seed=1)
    tensors = {name: tensor.detach().clone() for name, tensor in model_tensors(model).items()}
    assert sum(".mlp." in name for name in tensors) == 3
    load_model_tensors(other, tensors, place=Path("checkpoint"))
    assert is_shared(other)
    assert torch.equal(logits(other.eval()), logits(model.eval()))


def test_it_writes_what_it_would_write_without_remembering() -> None:
    model = pico_model("mobillama", layers=LAYERS).eval()
    ids = start = torch.arange(4)[None]
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    mask, settings = torch.ones_like(start), {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(start, attention_mask=mask, pad_token_id=0, **settings), ids)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layers", [1, 2, 11])
def test_it_is_saved_once_and_reloaded_as_one(layers: int, tied: bool, tmp_path: Path) -> None:
    model = pico_model("mobillama", layers=layers, tied=tied).eval()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(name for name in file.keys() if ".mlp." in name) == [  # noqa: SIM118 (not a mapping)
            f"model.layers.0.mlp.{part}_proj.weight" for part in ("down", "gate", "up")
        ]
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert type(loaded) is MobiLlamaForCausalLM and is_shared(loaded)
    assert torch.equal(logits(loaded.eval()), logits(model))
    ours = load_language_model(str(tmp_path), "clm")
    assert type(ours) is MobiLlamaForCausalLM and is_shared(ours)
    assert torch.equal(logits(ours), logits(model))
    assert count_parameters(ours) == count_parameters(model)


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder)
model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert not any(name.split(".")[0] == "stlm_kd" for name in sys.modules)
assert model.model.layers[0].mlp is model.model.layers[-1].mlp
model.save_pretrained(folder + "/again")
again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
ids = torch.arange(8)[None]
assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
torch.save((model(ids).logits.detach(), model.num_parameters(), len(tokenizer)), folder + "/found.pt")
"""


def test_plain_transformers_loads_a_saved_folder_with_the_code_beside_it(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 262)
    model = pico_model("mobillama", vocabulary=262, layers=LAYERS, tied=False).eval()
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder)
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found, parameters, tokens = torch.load(folder / "found.pt")
    assert torch.equal(found, logits(model))
    assert (parameters, tokens) == (count_parameters(model), 262)


@pytest.mark.parametrize("trust", [False, True])
def test_the_folders_copy_of_the_code_is_never_run_here(trust: bool, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, "bpe", 262)
    model = pico_model("mobillama", vocabulary=262).eval()
    save_model(model, tokenizer, tmp_path / "model")
    folder = tmp_path / "model"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["auto_map"] == {
        "AutoConfig": "mobillama.MobiLlamaConfig",
        "AutoModelForCausalLM": "mobillama.MobiLlamaForCausalLM",
    }
    (folder / "mobillama.py").write_text("raise SystemExit('the copy ran')", encoding="utf-8")
    assert type(load_config(str(folder), trust_remote_code=trust)) is MobiLlamaConfig
    loaded = load_language_model(str(folder), "clm", trust_remote_code=trust)
    assert torch.equal(logits(loaded), logits(model))
    assert load_tokenizer(str(folder), trust_remote_code=trust).get_vocab() == tokenizer.get_vocab()


def write_original(
    folder: Path, model: PreTrainedModel, *, only_first: bool = False, shards: int = 1, heads: int = 1
) -> None:
    """As the authors' code writes it: called a Llama, the network once a layer, key heads that are not so."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if only_first:
        tensors = {n: t for n, t in tensors.items() if ".mlp." not in n or ".layers.0." in n}
    config = {**model.config.to_dict(), "model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    config["num_key_value_heads"] = heads
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(weight_map.values()):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("only_first", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_an_original_checkpoint_is_recognised_by_its_weights(
    only_first: bool, shards: int, tied: bool, tmp_path: Path
) -> None:
    model = pico_model("mobillama", layers=LAYERS, tied=tied).eval()
    write_original(tmp_path, model, only_first=only_first, shards=shards)
    config = load_config(str(tmp_path))
    assert (config.model_type, config.num_key_value_heads) == ("mobillama", 2)
    loaded = load_language_model(str(tmp_path), "clm")
    assert is_shared(loaded)
    assert torch.equal(logits(loaded), logits(model))
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_language_model(str(tmp_path / "again"), "clm")), logits(model))


def test_a_llama_with_networks_of_its_own_stays_a_llama(tmp_path: Path) -> None:
    """Also one that differs from the shared network in a single number of its last layer's last row."""
    model = pico_model("mobillama", layers=LAYERS).eval()
    write_original(tmp_path, model, heads=2)
    assert load_config(str(tmp_path)).model_type == "mobillama"
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[f"model.layers.{LAYERS - 1}.mlp.down_proj.weight"][-1, -1] += 1e-3
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_config(str(tmp_path)).model_type == "llama"
    loaded = load_language_model(str(tmp_path), "clm")
    assert type(loaded) is LlamaForCausalLM
    last = loaded.model.layers[-1].mlp.down_proj.weight
    assert torch.equal(last, tensors[f"model.layers.{LAYERS - 1}.mlp.down_proj.weight"])


def test_a_llama_of_one_layer_stays_a_llama(tmp_path: Path) -> None:
    pico_model("llama", layers=1).save_pretrained(tmp_path)
    assert type(load_language_model(str(tmp_path), "clm")) is LlamaForCausalLM


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of somebody/mobillama in an otherwise empty cache of the Hub."""
    repository = tmp_path / "models--somebody--mobillama"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    return snapshot


def test_a_checkpoint_in_the_hubs_cache_is_recognised(snapshot: Path) -> None:
    model = pico_model("mobillama", layers=LAYERS).eval()
    write_original(snapshot, model)
    assert load_config("somebody/mobillama").model_type == "mobillama"
    assert torch.equal(logits(load_language_model("somebody/mobillama", "clm")), logits(model))


def test_a_configuration_whose_weights_are_not_there_says_no_more_than_it_can(snapshot: Path) -> None:
    write_original(snapshot, pico_model("mobillama", layers=LAYERS))
    (snapshot / "model.safetensors").unlink()
    assert load_config("somebody/mobillama").model_type == "llama"
    with pytest.raises(MissingResourceError, match="somebody/mobillama"):
        load_language_model("somebody/mobillama", "clm")


def test_damaged_weights_are_refused_when_they_are_loaded(tmp_path: Path) -> None:
    write_original(tmp_path, pico_model("mobillama", layers=LAYERS))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert load_config(str(tmp_path)).model_type == "llama"
    with pytest.raises(ModelError, match="cannot be read"):
        load_language_model(str(tmp_path), "clm")
