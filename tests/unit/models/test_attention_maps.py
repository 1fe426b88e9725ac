"""Attention maps against those of transformers' own eager attention, and the model around them unchanged."""

from __future__ import annotations

import filecmp
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from stlm_kd.errors import ModelError
from stlm_kd.models import attention_maps
from stlm_kd.models.attention_maps import install_maps, kept_maps
from stlm_kd.models.families import ARCHITECTURES
from tests.support.pico import ALL_FAMILIES, MASKED, pico_model
from tests.unit.models.test_blocks import LAYERS, ROWS, built, gradients, inputs_of, real

CHOSEN = (1, 3)
FLOAT64_FAMILIES = ("gpt2", *MASKED)
"""The others' own eager attention computes its softmax in float32, whatever the model's type."""


def maps_of(model: PreTrainedModel, inputs: dict[str, Tensor], layers: tuple[int, ...]) -> dict[int, Tensor]:
    with kept_maps(model, layers) as maps:
        model(**inputs, use_cache=False)
    return maps


def eager_maps(model: PreTrainedModel, padding: str) -> tuple[Tensor, ...]:
    assert model.config._attn_implementation == "eager"
    return tuple(model(**inputs_of(model, padding), use_cache=False, output_attentions=True).attentions)


@pytest.mark.parametrize(
    ("family", "backend", "padding"), list(product(ALL_FAMILIES, ["eager", "sdpa"], ROWS))
)
def test_maps_are_the_eager_ones_and_the_model_says_the_same(family: str, backend: str, padding: str) -> None:
    model = built(family, attention=backend)
    inputs, kept = inputs_of(model, padding), real(padding)
    before = model(**inputs, use_cache=False).logits
    maps = maps_of(model, inputs, CHOSEN)
    after = model(**inputs, use_cache=False).logits
    torch.testing.assert_close(after[kept], before[kept], rtol=1e-5, atol=2e-5)
    expected = eager_maps(built(family, attention="eager"), padding)
    assert set(maps) == set(CHOSEN)
    for layer in CHOSEN:
        found = maps[layer].transpose(1, 2)[kept]
        wanted = expected[layer].transpose(1, 2)[kept]
        torch.testing.assert_close(found.exp(), wanted, rtol=1e-4, atol=1e-6)
        assert torch.equal(found.isneginf(), wanted == 0), "only what the mask forbids is ruled out"


@pytest.mark.parametrize(("family", "padding"), list(product(FLOAT64_FAMILIES, ["none", "right", "packed"])))
def test_maps_in_float64_are_the_eager_ones_to_rounding(family: str, padding: str) -> None:
    model = built(family, double=True)
    maps = maps_of(model, inputs_of(model, padding), CHOSEN)
    expected = eager_maps(built(family, attention="eager", double=True), padding)
    kept = real(padding)
    for layer in CHOSEN:
        difference = (maps[layer].exp() - expected[layer]).transpose(1, 2)[kept]
        assert float(difference.detach().abs().max()) < 1e-13


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_gradient_through_maps_is_the_eager_one(family: str) -> None:
    model, eager = built(family, double=True), built(family, attention="eager", double=True)
    maps = maps_of(model, inputs_of(model, "packed"), CHOSEN)
    expected = eager_maps(eager, "packed")
    found = gradients(model, torch.cat([maps[layer].exp() for layer in CHOSEN]))
    wanted = gradients(eager, torch.cat([expected[layer] for layer in CHOSEN]))
    assert found.keys() == wanted.keys()
    largest = max(float(value.abs().max()) for value in wanted.values())
    tolerance = 1e-12 if family in FLOAT64_FAMILIES else 1e-5
    assert all(float((found[n] - wanted[n]).abs().max()) < tolerance * largest for n in wanted)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_other_layers_and_what_is_saved_do_not_change(family: str, tmp_path: Path) -> None:
    model = built(family)
    model.save_pretrained(tmp_path / "before")
    install_maps(model, [1])
    install_maps(model, [1])
    blocks = list(model.base_model.get_submodule(ARCHITECTURES[family].blocks))
    own = [any(getattr(m, "config", model.config) is not model.config for m in b.modules()) for b in blocks]
    assert own == [False, True, False, False]
    assert model.config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path / "after")
    names = [path.name for path in (tmp_path / "before").iterdir()]
    assert filecmp.cmpfiles(tmp_path / "before", tmp_path / "after", names, shallow=False)[0] == names


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_maps_have_the_same_gradient_under_gradient_checkpointing(family: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = built(family, double=True).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = inputs_of(model, "packed")
        with kept_maps(model, CHOSEN) as maps:
            logits = model(**inputs, use_cache=False).logits
        assert set(maps) == set(CHOSEN)
        flat = [maps[layer].exp().flatten() for layer in CHOSEN]
        found.append(gradients(model, torch.cat([*flat, logits.flatten()])))
        assert set(maps) == set(CHOSEN)
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys()
    assert all(torch.equal(plain[name], checkpointed[name]) for name in plain)


def dropping_gpt2(attention: float) -> PreTrainedModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=61, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=attention, initializer_range=0.2,
    )  # fmt: skip
    return GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")


def test_maps_are_read_before_dropout_which_the_layer_still_has() -> None:
    model = dropping_gpt2(0.5)
    inputs = inputs_of(model, "packed")
    calm = maps_of(model.eval(), inputs, (0, 1))
    dropped = maps_of(model.train(), inputs, (0, 1))
    assert torch.equal(dropped[0], calm[0])
    assert not torch.allclose(dropped[1].exp(), calm[1].exp(), atol=1e-2)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
def test_dropout_is_drawn_again_alike_when_a_block_is_run_again() -> None:
    found = []
    for checkpointing in (False, True):
        model = dropping_gpt2(0.5).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        maps = maps_of(model, inputs_of(model, "packed"), (3,))
        found.append(gradients(model, maps[3].exp()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_query_heads_that_share_a_key_have_maps_of_their_own() -> None:
    model = built("llama")
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (2, 1)
    (found,) = maps_of(model, inputs_of(model, "none"), (2,)).values()
    assert found.shape == (2, 2, 8, 8)
    assert not torch.allclose(found[:, 0].exp(), found[:, 1].exp(), atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "mobillama", "qwen2", "phi3"])
def test_each_query_head_looks_with_its_own_key_head(family: str) -> None:
    """Four query heads on two key heads: which share one is not seen with a single one."""
    found = {}
    for backend in ("sdpa", "eager"):
        config = pico_model(family, layers=LAYERS).config
        config.num_attention_heads, config.num_key_value_heads, config.head_dim = 4, 2, 4
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=backend).eval()
        inputs = inputs_of(model, "packed")
        if backend == "eager":
            found[backend] = model(**inputs, use_cache=False, output_attentions=True).attentions[1]
        else:
            before = model(**inputs).logits
            found[backend] = maps_of(model, inputs, (1,))[1].exp()
            torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-5, atol=2e-5)
    assert found["sdpa"].shape == (2, 4, 8, 8)
    kept = real("packed")
    sdpa, eager = (found[backend].transpose(1, 2)[kept] for backend in ("sdpa", "eager"))
    torch.testing.assert_close(sdpa, eager, rtol=1e-4, atol=1e-6)


def test_log_probabilities_are_exact_where_probabilities_underflow() -> None:
    model = built("bert")
    with torch.no_grad():
        model.base_model.encoder.layer[0].attention.self.query.weight.mul_(300)
    (found,) = maps_of(model, inputs_of(model, "none"), (0,)).values()
    exact_model = built("bert", double=True)
    with torch.no_grad():
        exact_model.base_model.encoder.layer[0].attention.self.query.weight.mul_(300)
    (exact,) = maps_of(exact_model, inputs_of(exact_model, "none"), (0,)).values()
    lost = found.exp() == 0
    assert lost.any() and found.isfinite().all()
    torch.testing.assert_close(found.double()[lost], exact[lost], rtol=1e-5, atol=0)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_a_query_that_may_look_nowhere_has_no_map_and_harms_no_gradient(backend: str) -> None:
    model = built("gpt2", attention=backend)
    (found,) = maps_of(model, inputs_of(model, "left"), (1,)).values()
    padded = ~real("left")
    assert found.transpose(1, 2)[padded].isneginf().all()
    model.zero_grad()
    found.exp().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_maps_under_autocast_are_in_float32() -> None:
    model = built("llama")
    inputs = inputs_of(model, "packed")
    (exact,) = maps_of(model, inputs, (0,)).values()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = maps_of(model, inputs, (0,)).values()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2, 2, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.exp(), exact.exp(), rtol=0, atol=0.05)


def test_only_runs_within_are_kept_and_only_the_layers_that_were_asked_for() -> None:
    model = built("llama")
    inputs = inputs_of(model, "packed")
    with torch.no_grad():
        maps = maps_of(model, inputs, (0, 2))
        first = maps[0]
        model(**inputs)
        assert maps[0] is first and not first.requires_grad
        assert set(maps_of(model, inputs, (2,))) == {2}


def test_generation_from_a_cache_goes_on_as_before() -> None:
    model, changed = built("llama"), built("llama")
    install_maps(changed, range(LAYERS))
    prompt = {"input_ids": torch.arange(1, 6)[None], "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
    given = {**prompt, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(changed.generate(**given), model.generate(**given))


def test_attention_that_cannot_be_read_is_refused() -> None:
    config = CONFIG_MAPPING["stablelm"](
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(ModelError, match="stablelm: the attention modules of this family are unknown"):
        install_maps(AutoModelForCausalLM.from_config(config), [0])
    crossed = pico_model("gpt2").config
    crossed.add_cross_attention = True
    with pytest.raises(ModelError, match="gpt2: 2 modules of self-attention found in layer 1, 1 expected"):
        install_maps(GPT2LMHeadModel(crossed), [1])
    module = built("gpt2").transformer.h[0].attn
    states = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ModelError, match="GPT2Attention: attention with softcap cannot be read"):
        attention_maps.attention_with_maps(module, states, states, states, None, softcap=1.0)
    with pytest.raises(ModelError, match="attention with a mask of 2 dimensions cannot be read"):
        attention_maps.attention_with_maps(module, states, states, states, torch.ones(1, 8))
