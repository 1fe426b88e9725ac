"""Memory and traffic of code on tensors without storage, by hand and by PyTorch's own hooks."""

from __future__ import annotations

import torch
from torch.autograd.graph import saved_tensors_hooks

from stlm_kd.estimate.simulation.trace import Trace, without_storage
from tests.support.pico import pico_model

FLOAT = 4


def test_what_is_alive_and_moved_is_as_by_hand() -> None:
    with without_storage():
        a, b = torch.empty(8, 16), torch.empty(16, 32)
    with Trace() as trace:
        product = a @ b  # 8 x 32; a product moves nothing that counts
        assert (trace.live, trace.moved) == (8 * 32 * FLOAT, 0)
        doubled = product.view(32, 8) + product.view(32, 8)  # two are read, one is written; views are free
        assert trace.moved == 3 * 8 * 32 * FLOAT
        del product
        assert trace.live == 8 * 32 * FLOAT
        assert trace.peak.num_bytes == 2 * 8 * 32 * FLOAT
        with trace.during("a pass"):
            tripled = doubled * 3
            del tripled
        assert (trace.live, trace.launches) == (8 * 32 * FLOAT, 3)
    assert {*trace.peaks} == {frozenset(), frozenset({"a pass"})}
    assert trace.peaks[frozenset({"a pass"})].num_bytes == 2 * 8 * 32 * FLOAT


def test_what_a_model_keeps_for_its_backward_pass_is_what_saved_tensor_hooks_see() -> None:
    mode = without_storage()
    with mode:
        model = pico_model("llama", width=32, layers=3).train()
    own = {weight.untyped_storage()._cdata for weight in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if isinstance(tensor, torch._subclasses.FakeTensor) and storage._cdata not in own:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    with mode:
        ids = torch.zeros(2, 16, dtype=torch.int64)
        mask = torch.ones(2, 1, 16, 16, dtype=torch.bool)
    before = {ids.untyped_storage()._cdata, mask.untyped_storage()._cdata}
    with Trace() as trace, saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.base_model(input_ids=ids, attention_mask=mask, position_ids=ids).last_hidden_state
        kept = sum(size for key, size in saved.items() if key not in before)
    alive = trace.live - hidden.untyped_storage().nbytes()
    assert kept <= alive + hidden.untyped_storage().nbytes() and alive <= kept
    assert trace.peak.num_bytes >= trace.live


def test_gradients_at_the_peak_are_told_apart() -> None:
    with without_storage():
        weight = torch.empty(64, 64, requires_grad=True)
        rows = torch.empty(8, 64)
    with Trace() as trace:
        trace.watch_gradients([weight])
        (rows @ weight).sum().backward()
        first = trace.peak
        torch.empty_like(weight)  # after the gradient is there
    assert trace.peak.gradients == 64 * 64 * FLOAT and trace.peak.num_bytes > first.num_bytes
