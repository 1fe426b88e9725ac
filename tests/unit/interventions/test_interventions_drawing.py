"""What is drawn: where, from where, which layer, and that it is drawn the same again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.batch import Batch
from stlm_kd.data.labelled.batches import ExampleBatch, on_cpu
from stlm_kd.data.labelled.encoding import Encoded
from stlm_kd.errors import DataError
from stlm_kd.interventions import Plan, Positions, SourceInputs, WordTokens, draw_plan, layer_at
from stlm_kd.interventions.plan import Noise, OtherStates, OwnStates, Tokens
from stlm_kd.interventions.spec import Intervention
from tests.support.interchange_case import SOURCES, Rows, base_batch, supplies
from tests.support.pico import packed_batch, part

LAYERS = {"t": {0: (0, 1), 1: (2, 3), 2: (4, 5)}}
rows_of_documents = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) <= 16),
    min_size=1,
    max_size=5,
)


def drawn(
    intervention: Intervention,
    batch: Batch | ExampleBatch,
    *,
    index: int = 0,
    given: SourceInputs | None = None,
) -> Plan:
    return draw_plan(intervention, batch, given or supplies(), index=index, steps=10, causal=False)


def spans(places: Positions, batch: Batch) -> Counter[tuple[int, int]]:
    """How many places there are in each document."""
    documents = batch.document_ids[places.rows, places.positions].tolist()
    return Counter(zip(places.rows.tolist(), documents, strict=True))


def source_of(plan: Plan, batch: Batch) -> tuple[Positions, Batch] | None:
    if isinstance(plan.source, OwnStates):
        return plan.source.places, batch
    if isinstance(plan.source, OtherStates):
        assert isinstance(plan.source.batch, Batch)
        return plan.source.places, plan.source.batch
    return None


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of_documents,
    source=st.sampled_from(sorted(SOURCES)),
    positions=st.sampled_from(["consecutive", "random"]),
    fraction=st.floats(0.01, 1.0),
    max_tokens=st.sampled_from([None, 1, 2]),
    index=st.integers(0, 9),
)
def test_places_lie_within_documents_and_are_as_many_as_they_should_be(
    rows: list[list[int]], source: str, positions: str, fraction: float, max_tokens: int | None, index: int
) -> None:
    name, options = SOURCES[source]
    batch = packed_batch(rows, length=16)
    plan = drawn(
        Intervention(
            "d", LAYERS, positions=positions, fraction=fraction, max_tokens=max_tokens, source=name,
            options=options,
        ),
        batch,
        index=index,
    )  # fmt: skip
    assert batch.attention_mask[plan.base.rows, plan.base.positions].all()
    places = list(zip(plan.base.rows.tolist(), plan.base.positions.tolist(), strict=True))
    assert len(set(places)) == len(places)
    counts = spans(plan.base, batch)
    assert counts.keys() == {(r, d + 1) for r, lengths in enumerate(rows) for d in range(len(lengths))}
    found = source_of(plan, batch)
    begin = 0
    for (row, document), count in counts.items():
        own = plan.base.positions[begin : begin + count]
        assert own.tolist() == sorted(own.tolist())
        length = rows[row][document - 1]
        if found is not None:
            places_there, there = found
            others = places_there.rows[begin : begin + count], places_there.positions[begin : begin + count]
            documents = there.document_ids[others]
            assert len(set(zip(others[0].tolist(), documents.tolist(), strict=True))) == 1
            assert documents[0] > 0
            same = (there.document_ids[others[0][0]] == documents[0]).sum()
            length = min(length, int(same))
            if positions == "consecutive":
                assert (others[1].diff() == 1).all()
        if positions == "consecutive":
            assert (own.diff() == 1).all()
        if name != "input-tokens":
            expected = max(1, int(fraction * length))
            assert count == (expected if max_tokens is None else min(expected, max_tokens))
        begin += count


@settings(max_examples=60, deadline=None)
@given(rows=rows_of_documents.filter(lambda rows: len(rows) > 1), index=st.integers(0, 9))
def test_no_row_of_a_batch_is_its_own_source(rows: list[list[int]], index: int) -> None:
    plan = drawn(Intervention("d", LAYERS), packed_batch(rows, length=16), index=index)
    assert isinstance(plan.source, OwnStates)
    pairs = set(zip(plan.base.rows.tolist(), plan.source.places.rows.tolist(), strict=True))
    assert all(row != other for row, other in pairs)
    assert len({row for row, _ in pairs}) == len({other for _, other in pairs}) == len(pairs) == len(rows)


def test_a_batch_of_one_row_takes_its_source_from_the_training_text() -> None:
    batch = packed_batch([[8]], length=8)
    plan = drawn(Intervention("d", LAYERS), batch)
    assert isinstance(plan.source, OtherStates)
    assert plan.source.batch.example_ids.item() in range(10, 14)
    with pytest.raises(DataError, match="d: no other row to draw a source from"):
        drawn(Intervention("d", LAYERS), batch, given=SourceInputs(0))


def test_a_row_of_the_pool_is_never_its_own_source() -> None:
    pool = Rows(packed_batch([[4], [5]], length=8))
    batch = part(pool.rows, slice(0, 1))
    options = {"pairing": "independent"}
    for index in range(20):
        plan = drawn(
            Intervention("d", LAYERS, options=options), batch, index=index, given=SourceInputs(0, pool)
        )
        assert isinstance(plan.source, OtherStates)
        assert plan.source.batch.example_ids.tolist() == [1]


@pytest.mark.parametrize("source", ["batch", "pool", "in-context", "mixup", "tokens"])
def test_rows_of_padding_take_no_part(source: str) -> None:
    name, options = SOURCES[source]
    batch = packed_batch([[4], [5], []], length=8)
    batch = replace(batch, example_ids=torch.tensor([3, 4, -1]))
    plan = drawn(Intervention("d", LAYERS, source=name, options=options), batch)
    assert set(plan.base.rows.tolist()) == {0, 1}
    found = source_of(plan, batch)
    assert found is None or (found[1].document_ids[found[0].rows, found[0].positions] > 0).all()
    alone = replace(part(batch, slice(2, 3)), example_ids=torch.tensor([-1]))
    assert len(drawn(Intervention("d", LAYERS, source=name, options=options), alone).base) == 0


@pytest.mark.parametrize("source", ["in-context-random", "mixup"])
def test_what_is_drawn_for_a_row_does_not_depend_on_its_batch(source: str) -> None:
    intervention = Intervention("d", LAYERS, source=source, positions="random")
    batch = packed_batch([[8], [5, 3], [6]], length=8)
    whole = drawn(intervention, batch, index=4)
    order = [2, 0, 1]
    for row in order:
        single = drawn(intervention, part(batch, slice(row, row + 1)), index=4)
        mine = whole.base.rows == row
        assert single.base.positions.tolist() == whole.base.positions[mine].tolist()
        assert single.student_layer == whole.student_layer
        if isinstance(whole.source, OtherStates) and isinstance(single.source, OtherStates):
            assert torch.equal(single.source.batch.input_ids[0], whole.source.batch.input_ids[row])
        if isinstance(whole.source, Noise) and isinstance(single.source, Noise):
            assert torch.equal(single.source.shares, whole.source.shares[mine])
            assert torch.equal(single.source.draw(16), whole.source.draw(16)[mine])


def test_a_source_from_the_training_text_does_not_depend_on_the_batch() -> None:
    intervention = Intervention("d", LAYERS, options={"pairing": "independent"})
    batch = packed_batch([[8], [5, 3], [6]], length=8)
    whole = drawn(intervention, batch)
    for row in range(3):
        single = drawn(intervention, part(batch, slice(row, row + 1)))
        mine = whole.base.rows == row
        assert isinstance(whole.source, OtherStates) and isinstance(single.source, OtherStates)
        assert torch.equal(single.source.batch.input_ids[0], whole.source.batch.input_ids[row])
        assert single.source.places.positions.tolist() == whole.source.places.positions[mine].tolist()


@settings(max_examples=40, deadline=None)
@given(source=st.sampled_from(sorted(SOURCES)), index=st.integers(0, 9), seed=st.integers(0, 5))
def test_the_same_seed_and_step_draw_the_same_again(source: str, index: int, seed: int) -> None:
    """Whatever was drawn before: nothing has to be kept for a resumed run."""
    name, options = SOURCES[source]
    intervention = Intervention("d", LAYERS, source=name, options=options)
    batch = base_batch("packed", masked=False)
    given = supplies(seed)
    first = drawn(intervention, batch, index=index, given=given)
    drawn(intervention, batch, index=index + 1, given=given)
    torch.rand(3)
    again = drawn(intervention, batch, index=index, given=given)
    for one, other in zip(numbers(first), numbers(again), strict=True):
        assert torch.equal(one, other)


def numbers(plan: Plan) -> list[torch.Tensor]:
    source = plan.source
    found = [torch.tensor(plan.student_layer), plan.base.rows, plan.base.positions]
    if isinstance(source, Noise):
        return [*found, source.shares, source.draw(16), source.tokens]
    if isinstance(source, Tokens):
        return [*found, source.ids]
    found += [source.places.rows, source.places.positions]
    return [*found, source.batch.input_ids] if isinstance(source, OtherStates) else found


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_drawing_reads_nothing_from_the_device_on_which_the_batch_lies(source: str) -> None:
    """Values of a meta tensor cannot be read, as those of a GPU cannot without waiting for it."""
    name, options = SOURCES[source]
    intervention, batch = (
        Intervention("d", LAYERS, source=name, options=options),
        base_batch("packed", masked=True),
    )
    there, here = drawn(intervention, batch.to(torch.device("meta"))), drawn(intervention, batch)
    assert there.student_layer == here.student_layer
    assert there.base.rows.device == there.touched.device == torch.device("meta")
    assert there.base.rows.shape == here.base.rows.shape
    moved = batch.to(torch.device("meta"))
    assert on_cpu(moved) is batch and replace(moved).origin is None


def test_other_steps_seeds_and_names_draw_others() -> None:
    batch = packed_batch([[16], [16], [16]], length=16)

    def positions(seed: int, index: int, name: str) -> list[int]:
        plan = drawn(Intervention(name, LAYERS), batch, index=index, given=supplies(seed))
        return plan.base.positions.tolist() + plan.base.rows.tolist()

    assert positions(0, 0, "d") == positions(0, 0, "d")
    assert len({str(positions(*of)) for of in [(0, 0, "d"), (1, 0, "d"), (0, 1, "d"), (0, 0, "e")]}) == 4


def test_in_a_random_schedule_every_layer_comes_equally_often() -> None:
    intervention = Intervention("d", LAYERS)
    found = Counter(layer_at(intervention, 0, index=index, steps=3000) for index in range(3000))
    assert set(found) == {0, 1, 2}
    assert all(abs(count - 1000) < 4 * (3000 * 2 / 9) ** 0.5 for count in found.values())


@pytest.mark.parametrize(("schedule", "order"), [("top-down", [2, 1, 0]), ("bottom-up", [0, 1, 2])])
def test_an_ordered_schedule_gives_each_layer_an_equal_share(schedule: str, order: list[int]) -> None:
    intervention = Intervention("d", LAYERS, layer_schedule=schedule)  # type: ignore[arg-type]
    found = [layer_at(intervention, 0, index=index, steps=12) for index in range(12)]
    assert found == [layer for layer in order for _ in range(4)]
    assert [layer_at(intervention, 0, index=index, steps=2) for index in range(2)] == order[:2]


def test_only_layers_that_every_teacher_knows_are_drawn() -> None:
    intervention = Intervention("d", {"t": {0: (0,), 1: (1,)}, "u": {1: (0,), 2: (1,)}})
    assert {layer_at(intervention, 0, index=index, steps=50) for index in range(50)} == {1}


def test_masked_positions_are_those_with_a_label() -> None:
    batch = base_batch("packed", masked=True)
    for source in ("batch", "pool", "in-context", "mixup"):
        name, options = SOURCES[source]
        plan = drawn(Intervention("d", LAYERS, positions="masked", source=name, options=options), batch)
        labelled = (batch.labels != -100) & batch.attention_mask
        chosen = torch.zeros_like(labelled)
        chosen[plan.base.rows, plan.base.positions] = True
        assert (labelled | ~chosen).all()
        if source in ("in-context", "mixup"):
            assert torch.equal(chosen, labelled)


def test_a_source_in_context_differs_at_just_its_places() -> None:
    batch = base_batch("packed", masked=False)
    plan = drawn(Intervention("d", LAYERS, source="in-context-random"), batch)
    assert isinstance(plan.source, OtherStates) and isinstance(plan.source.batch, Batch)
    changed = plan.source.batch.input_ids != batch.input_ids
    places = torch.zeros_like(changed)
    places[plan.base.rows, plan.base.positions] = True
    assert not (changed & ~places).any() and changed.any()
    assert torch.equal(plan.source.places.positions, plan.base.positions)
    assert torch.equal(plan.source.places.rows, plan.base.rows)


def test_random_tokens_are_never_special() -> None:
    batch = packed_batch([[16]] * 4, length=16)
    lexicon = WordTokens(np.array([7, 8, 9]), {})
    intervention = Intervention("d", LAYERS, source="in-context-random", fraction=1.0)
    plan = drawn(intervention, batch, given=SourceInputs(0, None, lexicon))
    assert isinstance(plan.source, OtherStates)
    assert set(plan.source.batch.input_ids.flatten().tolist()) == {7, 8, 9}


def test_noise_is_standard_normal_and_the_same_for_models_of_one_width() -> None:
    batch = packed_batch([[16]] * 8, length=16)
    plan = drawn(Intervention("d", LAYERS, source="mixup", fraction=1.0), batch)
    assert isinstance(plan.source, Noise)
    found = plan.source.draw(64)
    assert found.shape == (128, 64)
    assert abs(float(found.mean())) < 0.05 and abs(float(found.std()) - 1) < 0.05
    assert torch.equal(found, plan.source.draw(64))
    assert plan.source.draw(32).shape == (128, 32)
    shares = plan.source.shares
    assert len(set(shares.tolist())) == 128 and float(shares.min()) >= 0 and float(shares.max()) <= 1


def test_examples_have_their_places_on_attended_tokens() -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    batch = ExampleBatch(
        torch.arange(15).view(3, 5), mask, None, torch.tensor([0, 1, -100]), torch.tensor([4, 5, -1]),
        {"t": Encoded(torch.arange(15).view(3, 5), mask, None)},
    )  # fmt: skip
    plan = drawn(Intervention("d", LAYERS), batch)
    assert isinstance(plan.source, OwnStates)
    assert plan.touched.shape == (3,)
    assert set(plan.base.rows.tolist()) == {0, 1}
    assert mask[plan.base.rows, plan.base.positions].all()
    assert mask[plan.source.places.rows, plan.source.places.positions].all()
