"""Teachers that take less memory: half of it by their precision, little of it while they rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stlm_kd.data.batch import Batch
from stlm_kd.models.outputs import OutputSpec
from stlm_kd.teachers import live
from stlm_kd.teachers.live import LiveTeacher
from tests.support.pico import pico_model

NEEDS = OutputSpec(head_input=True, sites=frozenset({"embeddings", 0}))


def batch() -> Batch:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), ids, whole, torch.arange(9).expand(2, 9), torch.arange(2))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_body_is_moved_for_its_turn_alone_and_says_the_same(
    family: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pico_model(family, vocabulary=61, tied=tied)
    expected = LiveTeacher(model, 61)(batch(), NEEDS)
    resting = {name: weight.data_ptr() for name, weight in model.named_parameters()}
    moved: list[Tensor] = []

    def to_another_place(weight: Tensor, device: torch.device) -> Tensor:
        moved.append(weight.clone())
        return moved[-1]

    seen: set[str] = set()

    def watched(*given: object) -> object:
        seen.update(name for name, weight in model.named_parameters() if weight.data_ptr() != resting[name])
        return forward(*given)

    forward = live.forward_with_outputs
    monkeypatch.setattr(live, "_moved", to_another_place)
    monkeypatch.setattr(live, "forward_with_outputs", watched)
    found = LiveTeacher(model, 61, placement="offload")(batch(), NEEDS)
    outer = {
        name
        for name, weight in model.named_parameters()
        if any(weight is own for layer in (model.get_input_embeddings(), model.get_output_embeddings())
               for own in layer.parameters())
    }  # fmt: skip
    assert seen == set(resting) - outer and len(moved) == len(seen)
    assert {name: weight.data_ptr() for name, weight in model.named_parameters()} == resting
    assert found.distribution is not None and expected.distribution is not None
    assert torch.equal(
        found.distribution.logits(slice(None), 61), expected.distribution.logits(slice(None), 61)
    )
    assert torch.equal(found.observed.states[0], expected.observed.states[0])


def test_a_failure_leaves_the_weights_where_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = pico_model("llama", vocabulary=61)
    resting = [weight.data_ptr() for weight in model.parameters()]

    def fails(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(live, "_moved", lambda weight, device: weight.clone())
    monkeypatch.setattr(live, "forward_with_outputs", fails)
    with pytest.raises(MemoryError):
        LiveTeacher(model, 61, placement="offload")(batch(), NEEDS)
    assert [weight.data_ptr() for weight in model.parameters()] == resting
