"""Teachers that take less memory: half of it by their precision, little of it while they rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stlm_kd.data.batch import Batch
from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers import units
from stlm_kd.teachers.live import LiveTeacher
from tests.support.pico import pico_model

NEEDS = OutputSpec(head_input=True, sites=frozenset({"embeddings", 0}))


def batch() -> Batch:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), ids, whole, torch.arange(9).expand(2, 9), torch.arange(2))


@pytest.mark.parametrize("family", ["gpt2", "llama", "unknown"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_block_is_moved_for_its_turn_alone_and_the_outputs_are_the_same(
    family: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pico_model("gpt2" if family == "unknown" else family, vocabulary=61, tied=tied)
    needs = OutputSpec(head_input=True) if family == "unknown" else NEEDS
    expected = LiveTeacher(model, 61)(batch(), needs)
    if family == "unknown":
        monkeypatch.delitem(ARCHITECTURES, "gpt2")
    resting = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    moved: list[set[str]] = []

    def watch(*_: object) -> None:
        moved.append({n for n, weight in model.named_parameters() if weight.data_ptr() != resting[n]})

    # Copies of their own size at places that were not used before.
    kept: list[Tensor] = []
    monkeypatch.setattr(units, "_moved", lambda weight, _device: kept.append(weight.clone()) or kept[-1])
    teacher = LiveTeacher(model, 61, placement="offload")
    for module in model.modules():
        if not [*module.children()]:
            module.register_forward_pre_hook(watch)
    found = teacher(batch(), needs)
    outer = {
        name
        for name, weight in model.named_parameters()
        if any(weight is own for layer in (model.get_input_embeddings(), model.get_output_embeddings())
               for own in layer.parameters())
    }  # fmt: skip
    assert set.union(*moved) == set(resting) - outer
    blocks = [{".".join(name.split(".")[:3]) for name in names} for names in moved if len(names) > 2]
    assert all(len(names) == 1 for names in blocks) or family == "unknown"
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == resting
    assert found.distribution is not None and expected.distribution is not None
    assert torch.equal(
        found.distribution.logits(slice(None), 61), expected.distribution.logits(slice(None), 61)
    )
    assert all(
        torch.equal(found.observed.states[site], expected.observed.states[site]) for site in needs.sites
    )


def test_a_failure_leaves_the_weights_where_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model("llama", vocabulary=61)
    resting = [weight.data_ptr() for weight in model.parameters()]

    def fails(*_: object) -> None:
        assert [weight.data_ptr() for weight in model.parameters()] != resting
        raise MemoryError

    monkeypatch.setattr(units, "_moved", lambda weight, device: weight.clone())
    teacher = LiveTeacher(model, 61, placement="offload")
    model.model.layers[1].mlp.register_forward_pre_hook(fails)
    with pytest.raises(MemoryError):
        teacher(batch(), NEEDS)
    assert [weight.data_ptr() for weight in model.parameters()] == resting
