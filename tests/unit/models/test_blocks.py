"""Partial runs against the whole model, and against a whole re-run with hooks that overwrite states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from stlm_kd.errors import ModelError
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import bypassed_head, head_of, last_hidden, model_inputs
from stlm_kd.models.partial_forward import finish, prepare
from tests.support.pico import ALL_FAMILIES, CAUSAL, packed_batch, pico_model

LAYERS, LENGTH = 4, 8
ROWS = {
    "none": [[8], [8]],
    "right": [[8], [5]],
    "left": [[8], [5]],
    "packed": [[3, 5], [4, 2]],
}
"""Lengths of the documents of each row."""

NORMS = dict.fromkeys(CAUSAL, "norm") | {
    "gpt2": "ln_f",
    "gpt_neox": "final_layer_norm",
    "opt": "decoder.final_layer_norm",
}
"""The norm after the last block, where there is one."""


def built(family: str, *, attention: str = "sdpa", double: bool = False) -> PreTrainedModel:
    model = pico_model(family, layers=LAYERS, attention=attention)
    return (model.double() if double else model).eval()


def inputs_of(model: PreTrainedModel, padding: str) -> dict[str, Tensor]:
    """Two rows: a 2D mask as transformers' tokenizers give it, or the 4D mask of packed documents."""
    batch = packed_batch(ROWS[padding], length=LENGTH)
    if padding == "packed":
        return model_inputs(batch, model)
    mask_BT = batch.attention_mask.long()
    ids_BT = batch.input_ids
    if padding == "left":
        mask_BT, ids_BT = mask_BT.flip(1), ids_BT.flip(1)
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def real(padding: str) -> Tensor:
    mask_BT = packed_batch(ROWS[padding], length=LENGTH).attention_mask
    return mask_BT.flip(1) if padding == "left" else mask_BT


def change(state_BTD: Tensor) -> Tensor:
    """Not the identity anywhere, and with a gradient of its own."""
    return torch.cat([state_BTD[:, :, 8:].tanh(), state_BTD[:, :, :8] * 0.5], dim=2)


def hooked(
    model: PreTrainedModel, inputs: Mapping[str, Tensor], overwrite: Mapping[int, Callable[[Tensor], Tensor]]
) -> tuple[Tensor, dict[int, Tensor]]:
    """The logits and all blocks' states of a whole run in which hooks overwrite some of the states."""
    states: dict[int, Tensor] = {}

    def hook_of(i: int) -> Callable[..., Tensor]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            states[i] = overwrite[i](output) if i in overwrite else output
            return states[i]

        return hook

    blocks = model.base_model.get_submodule(ARCHITECTURES[model.config.model_type].blocks)
    hooks = [block.register_forward_hook(hook_of(i)) for i, block in enumerate(blocks)]
    logits = model(**inputs, use_cache=False).logits
    for handle in hooks:
        handle.remove()
    return logits, states


def gradients(model: PreTrainedModel, logits: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    (logits * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


Cell = tuple[PreTrainedModel, Mapping[str, Tensor], Tensor]
"""A model, what it is called with, and the positions that are not padding."""


@pytest.fixture(params=product(ALL_FAMILIES, ["eager", "sdpa"], ROWS), ids="-".join)
def cell(request: pytest.FixtureRequest) -> Cell:
    family, attention, padding = request.param
    model = built(family, attention=attention)
    return model, inputs_of(model, padding), real(padding)


def test_running_to_a_block_and_on_from_it_is_the_whole_run_bit_for_bit(cell: Cell) -> None:
    model, inputs, kept = cell
    whole = model(**inputs, use_cache=False).logits[kept]
    prepared = prepare(model, inputs)
    for k in range(LAYERS + 1):
        hidden, _ = prepared.run(stop=k)
        last, _ = prepared.run(hidden, start=k)
        assert torch.equal(finish(model, last, inputs).logits[kept], whole)


def test_states_overwritten_and_kept_are_those_of_a_whole_run_with_hooks(cell: Cell) -> None:
    model, inputs, kept = cell
    expected, states = hooked(model, inputs, {1: change, 2: change})
    last, found = prepare(model, inputs).run(overwrite={1: change, 2: change}, keep=range(LAYERS))
    assert torch.equal(finish(model, last, inputs).logits[kept], expected[kept])
    assert all(torch.equal(found[i][kept], states[i][kept]) for i in range(LAYERS))
    assert torch.equal(last, found[LAYERS - 1])


@pytest.mark.parametrize("family", ["gpt2", "mobillama", "bert"])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_blocks_may_be_overwritten_kept_and_stopped_at(family: str, data: st.DataObject) -> None:
    model = built(family)
    inputs = inputs_of(model, "packed")
    blocks = st.sets(st.integers(0, LAYERS - 1))
    overwrite = dict.fromkeys(data.draw(blocks), change)
    keep, k = data.draw(blocks), data.draw(st.integers(0, LAYERS))
    _, states = hooked(model, inputs, overwrite)
    prepared = prepare(model, inputs)
    hidden, first = prepared.run(stop=k, overwrite=overwrite, keep=keep)
    last, second = prepared.run(hidden, start=k, overwrite=overwrite, keep=keep)
    assert set(first) == {i for i in keep if i < k} and set(second) == {i for i in keep if i >= k}
    assert all(torch.equal(state, states[i]) for i, state in (first | second).items())
    assert torch.equal(last, states[LAYERS - 1])
    assert torch.equal(hidden, states[k - 1] if k else prepared.embedded)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("padding", ["right", "packed"])
def test_gradients_through_partial_runs_are_those_of_a_whole_run_with_hooks(
    family: str, padding: str, checkpointing: bool
) -> None:
    """A base run that keeps block 1's state and a second pass on from it, both counted."""
    model = built(family, double=True)
    model.train()
    inputs, kept = inputs_of(model, padding), real(padding)
    base, _ = hooked(model, inputs, {})
    changed, _ = hooked(model, inputs, {1: change, 2: change})
    expected = gradients(model, torch.cat([base[kept], changed[kept]]))
    if checkpointing:  # only now: some releases recompute a block with its hooks, which are gone by then
        model.gradient_checkpointing_enable()
    prepared = prepare(model, inputs)
    last, states = prepared.run(keep=[1])
    other, _ = prepared.run(change(states[1]), start=2, overwrite={2: change})
    logits = [finish(model, hidden, inputs).logits[kept] for hidden in (last, other)]
    found = gradients(model, torch.cat(logits))
    assert torch.equal(logits[1], changed[kept])
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) < 1e-6 * largest, name


def test_sliding_windows_of_some_layers_alone_are_kept() -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING["qwen2"](
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2,
        num_key_value_heads=1, use_sliding_window=True, sliding_window=3, max_window_layers=2,
        initializer_range=0.2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    inputs = inputs_of(model, "none")
    prepared = prepare(model, inputs)
    hidden, _ = prepared.run(stop=1)
    last, _ = prepared.run(hidden, start=1)
    assert torch.equal(finish(model, last, inputs).logits, model(**inputs, use_cache=False).logits)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_state_that_meets_the_head_is_had_with_the_head_bypassed(family: str) -> None:
    model = built(family)
    batch = packed_batch(ROWS["packed"], length=LENGTH)
    inputs = model_inputs(batch, model)
    last, _ = prepare(model, inputs).run()
    with bypassed_head(model):
        hidden = finish(model, last, inputs).logits
    assert torch.equal(hidden, last_hidden(model, batch))
    norm = NORMS.get(family)
    if norm is not None:
        assert torch.equal(hidden, model.base_model.get_submodule(norm)(last))
    head = head_of(model)
    assert torch.equal(
        nn.functional.linear(hidden, head.weight, head.bias), finish(model, last, inputs).logits
    )


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_any_head_finishes_a_run(family: str) -> None:
    config = pico_model(family).config
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    inputs = {"input_ids": torch.arange(1, 9)[None]}
    last, _ = prepare(model, inputs).run()
    assert torch.equal(finish(model, last, inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_no_block_runs_while_a_model_is_prepared_and_its_blocks_are_put_back(family: str) -> None:
    model = built(family)
    ran: list[nn.Module] = []
    blocks = model.base_model.get_submodule(ARCHITECTURES[family].blocks)
    for block in blocks:
        block.register_forward_hook(lambda module, *_: ran.append(module))
    prepared = prepare(model, {"input_ids": torch.arange(8)[None]})
    assert not ran
    assert model.base_model.get_submodule(ARCHITECTURES[family].blocks) is blocks
    prepared.run(start=1, stop=3)
    assert ran == list(blocks)[1:3]


def test_blocks_are_put_back_when_the_model_fails() -> None:
    model = built("llama")
    blocks = model.base_model.layers
    with pytest.raises(IndexError):
        prepare(model, {"input_ids": torch.tensor([[1000]])})
    assert model.base_model.layers is blocks


def test_a_family_without_a_row_is_refused() -> None:
    config = CONFIG_MAPPING["stablelm"](
        vocab_size=61, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="stablelm: the blocks of this family are unknown"):
        prepare(model, {"input_ids": torch.arange(8)[None]})
