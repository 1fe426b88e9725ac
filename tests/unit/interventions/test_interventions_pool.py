"""Rows of the training data as sources: their numbers, their contents, their masks."""

from __future__ import annotations

import numpy as np
import torch

from stlm_kd.data.batch import IGNORED
from stlm_kd.data.batches import BatchStream, PackedRows
from stlm_kd.data.masking import Masking
from stlm_kd.interventions import SourceInputs, draw_plan
from stlm_kd.interventions.example_pool import TextPool
from stlm_kd.interventions.plan import OtherStates
from stlm_kd.interventions.spec import Intervention
from tests.support.stores import store_of


def part(tokens: list[int], *, weight: float = 1.0) -> PackedRows:
    """A row of eight positions for each token, of that token alone."""
    made = PackedRows(store_of([[token] * 6 for token in tokens]), 8, weight=weight)
    assert len(made) == len(tokens)
    return made


def generators(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def test_rows_are_numbered_as_the_stream_numbers_them() -> None:
    parts = [part([10, 11]), part([12, 13, 14], weight=0.0), part([15, 16])]
    pool = TextPool(parts)
    stream = BatchStream(parts, effective_batch=4, micro_batch=4, seed=0)
    (batch,) = stream.step(0)
    known = dict(zip(batch.example_ids.tolist(), batch.input_ids[:, 1].tolist(), strict=True))
    assert len(pool) == 4
    found = pool.batch(range(4), generators(4))
    assert dict(zip(found.example_ids.tolist(), found.input_ids[:, 1].tolist(), strict=True)) == known
    assert [pool.number(place) for place in range(4)] == found.example_ids.tolist() == [0, 1, 5, 6]


def test_rows_come_in_the_order_that_is_asked_for_and_more_than_once() -> None:
    pool = TextPool([part([10, 11, 12])])
    found = pool.batch([2, 0, 2], generators(3))
    assert found.input_ids[:, 1].tolist() == [12, 10, 12]
    assert found.document_ids.tolist() == [[1] * 8] * 3


def test_a_source_is_masked_by_its_own_generator_alone() -> None:
    weights = np.zeros(100)
    weights[10:20] = 1.0
    pool = TextPool([part([10, 11, 12])], Masking(weights, mask_id=3, share=0.5))
    three, one = pool.batch([0, 1, 2], generators(3)), pool.batch([1], generators(2)[1:])
    assert torch.equal(three.input_ids[1], one.input_ids[0])
    assert torch.equal(three.labels[1], one.labels[0])
    assert (three.labels != IGNORED).sum(1).tolist() == [4, 4, 4]
    assert (three.input_ids == 3).any()


def test_every_other_row_becomes_a_source_sometimes() -> None:
    parts = [part([10, 11]), part([12, 13])]
    stream = BatchStream(parts, effective_batch=4, micro_batch=1, seed=0)
    (batch, *_) = stream.step(0)
    own = batch.example_ids.item()
    intervention = Intervention("d", {"t": {0: (0,)}}, options={"pairing": "independent"})
    seen = set()
    for index in range(40):
        plan = draw_plan(
            intervention, batch, SourceInputs(0, TextPool(parts)), index=index, steps=40, causal=True
        )
        assert isinstance(plan.source, OtherStates)
        seen.add(plan.source.batch.example_ids.item())
    assert seen == {0, 1, 2, 3} - {own}
