"""What is observed against transformers' own hidden states, logits and gradients; and how deep it runs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.forward import last_hidden, model_inputs
from stlm_kd.models.layer_alignment import Site
from stlm_kd.models.outputs import OutputSpec, forward_with_outputs
from tests.support.pico import ALL_FAMILIES, MASKED, packed_batch, pico_model
from tests.unit.models.test_blocks import LAYERS, NORMS, ROWS, built, gradients, inputs_of, real

SITES: tuple[Site, ...] = ("embeddings", "last", *range(LAYERS))
CELLS = list(product(ALL_FAMILIES, ["none", "right", "packed"]))


@pytest.mark.parametrize(("family", "padding"), CELLS)
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_states_are_transformers_own_bit_for_bit(family: str, padding: str, double: bool) -> None:
    model = built(family, double=double)
    inputs, kept = inputs_of(model, padding), real(padding)
    whole = model(**inputs, use_cache=False, output_hidden_states=True)
    found = forward_with_outputs(
        model, inputs, OutputSpec(head_input=True, logits=True, sites=frozenset(SITES))
    )
    states = found.states
    assert set(states) == set(SITES)
    assert torch.equal(states["embeddings"][kept], whole.hidden_states[0][kept])
    for layer in range(LAYERS - 1):
        assert torch.equal(states[layer][kept], whole.hidden_states[layer + 1][kept])
    assert torch.equal(states["last"][kept], whole.hidden_states[-1][kept])
    norm = model.base_model.get_submodule(NORMS[family]) if family in NORMS else nn.Identity()
    assert torch.equal(norm(states[LAYERS - 1]), states["last"])
    assert found.logits is not None and torch.equal(found.logits[kept], whole.logits[kept])


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("sites", [(), ("last",), (1, "last")], ids=str)
def test_the_head_meets_what_it_meets_without_an_observer(family: str, sites: tuple[Site, ...]) -> None:
    model = built(family)
    batch = packed_batch(ROWS["packed"], length=8)
    inputs = model_inputs(batch, model)
    found = forward_with_outputs(model, inputs, OutputSpec(head_input=True, sites=frozenset(sites)))
    assert found.head_input is not None and found.logits is None
    assert torch.equal(found.head_input, last_hidden(model, batch))
    assert set(found.states) == set(sites)
    if "last" in sites:
        whole = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(found.states["last"], whole)


@pytest.mark.parametrize("family", ["gpt2", "mobillama", "bert"])
@settings(max_examples=20, deadline=None)
@given(
    head_input=st.booleans(), logits=st.booleans(), sites=st.sets(st.sampled_from(SITES)),
    maps=st.sets(st.integers(0, LAYERS - 1)),
)  # fmt: skip
def test_whatever_is_asked_for_is_the_same_and_no_more_is_run(
    family: str, head_input: bool, logits: bool, sites: set[Site], maps: set[int]
) -> None:
    model = built(family)
    inputs = inputs_of(model, "packed")
    everything = OutputSpec(
        head_input=True, logits=True, sites=frozenset(SITES), maps=frozenset(range(LAYERS))
    )
    expected = forward_with_outputs(model, inputs, everything)
    needs = OutputSpec(head_input=head_input, logits=logits, sites=frozenset(sites), maps=frozenset(maps))
    ran: list[str] = []
    blocks = model.base_model.get_submodule(ARCHITECTURES[family].blocks)
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(str(i)))
    model.get_output_embeddings().register_forward_hook(
        lambda _head, _met, said: ran.append("head" if said.shape[-1] == 61 else "head bypassed")
    )
    found = forward_with_outputs(model, inputs, needs)
    whole = head_input or logits or "last" in sites
    deepest = LAYERS - 1 if whole else max([-1, *maps, *(s for s in sites if isinstance(s, int))])
    blocks_run = [str(i) for i in range(deepest + 1)]
    end = ["head"] if logits else ["head bypassed"] if head_input else []
    assert ran == [*blocks_run, *end]
    assert (found.head_input is not None, found.logits is not None) == (head_input, logits)
    assert set(found.states) == sites and set(found.maps) == maps
    pairs = [(found.states[site], expected.states[site]) for site in sites]
    pairs += [(found.maps[layer], expected.maps[layer]) for layer in maps]
    pairs += [
        (a, b) for a, b in ((found.head_input, expected.head_input),) if a is not None and b is not None
    ]
    pairs += [(a, b) for a, b in ((found.logits, expected.logits),) if a is not None and b is not None]
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_gradients_through_states_and_logits_are_those_of_the_whole_model(
    family: str, checkpointing: bool
) -> None:
    model = built(family, double=True)
    inputs = inputs_of(model, "packed")
    whole = model(**inputs, use_cache=False, output_hidden_states=True)
    states = [whole.hidden_states[0], whole.hidden_states[2], whole.hidden_states[-1], whole.logits]
    expected = gradients(model, flat(states))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = forward_with_outputs(
        model, inputs, OutputSpec(logits=True, sites=frozenset({"embeddings", 1, "last"}))
    )
    assert found.logits is not None
    observed = gradients(model, flat([*(found.states[s] for s in ("embeddings", 1, "last")), found.logits]))
    assert observed.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert all(float((observed[n] - expected[n]).abs().max()) < 1e-6 * largest for n in expected)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


CLASSIFIERS = [
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoModelForQuestionAnswering,
]


def classifier(family: str, kind: type) -> PreTrainedModel:
    config = pico_model(family, layers=LAYERS).config
    config.pad_token_id, config.num_labels = 0, 2 if kind is AutoModelForQuestionAnswering else 3
    torch.manual_seed(0)
    return kind.from_config(config).eval()


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize("sites", [(), ("last",), (1, "last")], ids=str)
def test_classifiers_say_what_they_say(family: str, kind: type, sites: tuple[Site, ...]) -> None:
    model = classifier(family, kind)
    inputs = {
        "input_ids": torch.arange(1, 17).view(2, 8),
        "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3]),
    }
    if family == "bert":
        inputs["token_type_ids"] = torch.tensor([[0] * 4 + [1] * 4] * 2)
    whole = model(**inputs, output_hidden_states=True)
    found = forward_with_outputs(model, inputs, OutputSpec(logits=True, sites=frozenset(sites)))
    expected = whole.logits if "logits" in whole else torch.stack([whole.start_logits, whole.end_logits], -1)
    assert found.logits is not None and torch.equal(found.logits, expected)
    kept = inputs["attention_mask"].bool()
    for site in sites:
        state = whole.hidden_states[-1 if site == "last" else 2]
        assert torch.equal(found.states[site][kept], state[kept])


def test_classifiers_have_maps_too() -> None:
    model, inputs = classifier("bert", CLASSIFIERS[0]), {"input_ids": torch.arange(1, 9)[None]}
    found = forward_with_outputs(model, inputs, OutputSpec(logits=True, maps=frozenset({2})))
    assert found.maps[2].shape == (1, 2, 8, 8)
    assert found.logits is not None
    torch.testing.assert_close(found.logits, model(**inputs).logits)


@pytest.mark.parametrize("family", [*MASKED, "gpt2"])
def test_no_hook_is_left_behind(family: str) -> None:
    model = built(family)
    with pytest.raises(IndexError):
        forward_with_outputs(
            model,
            {"input_ids": torch.tensor([[1000]])},
            OutputSpec(head_input=True, sites=frozenset({"last"})),
        )
    forward_with_outputs(
        model, inputs_of(model, "none"), OutputSpec(head_input=True, sites=frozenset({"last"}))
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_needs_are_joined() -> None:
    one = OutputSpec(head_input=True, sites=frozenset({"last"}), maps=frozenset({1}))
    other = OutputSpec(logits=True, sites=frozenset({"last", 3}))
    joined = OutputSpec(head_input=True, logits=True, sites=frozenset({"last", 3}), maps=frozenset({1}))
    assert one | other == joined == other | one
    assert one | OutputSpec() == one
    early, late = OutputSpec(resume=1), OutputSpec(resume=3)
    assert early | late == late | early == OutputSpec(resume=1)
    assert late | one == replace(one, resume=3)
