"""A step with interventions has the same loss and gradient in any micro-batches and processes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stlm_kd.data import batches as of_text
from stlm_kd.data.batch import Sources
from stlm_kd.data.batches import BatchStream
from stlm_kd.data.dealing import NO_SOURCE, dealt, in_pairs, share_run_again, sources, sources_within
from stlm_kd.data.labelled import batches as of_examples
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.interventions.plan import Joined, OtherStates, OwnStates
from tests.slow.test_engine_objectives import apart
from tests.support.engine_fleet import Run, launch, train
from tests.support.interchange_case import SOURCES
from tests.support.interchange_steps import KINDS, Kind, packed, step_of, stream

EXACT = 1e-12
ANY_SPLIT = [source for source in SOURCES if source != "mixup-matched"]
"""All but what has the mean and deviation of a micro-batch."""


def accumulated(
    step: DistillationStep, batches: Sequence[AnyBatch]
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """What the engine makes of the micro-batches of a step: its terms and their total, and the gradients."""
    counts = [step.count(batch) for batch in batches]
    denominators = {name: float(sum(count[name] for count in counts)) for name in counts[0]}
    step.zero_grad()
    values = dict.fromkeys([*denominators, "loss"], 0.0)
    for batch in batches:
        output = step(batch, denominators)
        output.loss.backward()
        values["loss"] += output.loss.item()
        for name, total in output.sums.items():
            values[name] += float(total) / denominators[name]
    return values, {n: p.grad.clone() for n, p in step.named_parameters() if p.grad is not None}


def assert_same(found: tuple[dict, dict[str, Tensor]], expected: tuple[dict, dict[str, Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=EXACT, abs=EXACT)
    assert found[1].keys() == expected[1].keys()
    largest = max(float(slope.abs().max()) for slope in expected[1].values())
    for name, slope in expected[1].items():
        assert float((found[1][name] - slope).abs().max()) <= EXACT * largest, name


def split(
    kind: Kind, *, index: int = 0, micro: int, world_size: int = 1, effective: int = 16
) -> list[AnyBatch]:
    """The micro-batches of all processes."""
    ranks = range(world_size)
    streams = [
        stream(kind, effective=effective, micro=micro, rank=rank, world_size=world_size) for rank in ranks
    ]
    return list(chain(*(one.step(index) for one in streams)))


@pytest.mark.parametrize(
    ("kind", "positions"),
    [("packed", "consecutive"), ("packed", "random"), ("masked", "masked"), ("examples", "consecutive")],
)
def test_any_split_gives_the_same_loss_and_gradient(kind: Kind, positions: str) -> None:
    """In one process: 1 x 16, 2 x 8, 4 x 4, 8 x 2, 16 x 1, and odd ones; and as dealt to two or three."""
    step = step_of(kind, positions=positions)
    step.begin(3, 10)
    expected = accumulated(step, split(kind, micro=16))
    for micro, world_size in ((8, 1), (4, 1), (2, 1), (1, 1), (3, 1), (8, 2)):
        assert_same(accumulated(step, split(kind, micro=micro, world_size=world_size)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(5, 11), (1, 15), (3, 6, 7)])
def test_micro_batches_that_cut_pairs_apart_run_the_sources_again(
    kind: Kind, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = step_of(kind)
    step.begin(3, 10)
    expected = accumulated(step, split(kind, micro=16))
    groups = np.split(np.arange(16), np.cumsum(sizes)[:-1])
    for module in (of_text, of_examples):
        monkeypatch.setattr(module, "dealt", lambda *_, **__: groups)
    batches = split(kind, micro=16)
    assert [len(batch.example_ids) for batch in batches] == [*sizes]
    found = [step.drawn(batch)["d"].source for batch in batches]
    assert any(isinstance(source, (Joined, OtherStates)) for source in found)
    assert_same(accumulated(step, batches), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ANY_SPLIT)
def test_every_source_gives_the_same_in_any_split(kind: Kind, source: str) -> None:
    step = step_of(kind, source)
    step.begin(1, 10)
    expected = accumulated(step, split(kind, micro=6, index=1, effective=6))
    for micro in (4, 1):
        assert_same(accumulated(step, split(kind, micro=micro, index=1, effective=6)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("effective", [1, 2, 7])
def test_odd_steps_and_the_last_one_of_an_epoch_do_too(kind: Kind, effective: int) -> None:
    step = step_of(kind)
    last = stream(kind, effective=effective, micro=1).steps_per_epoch - 1
    for index in {0, last}:
        step.begin(index, last + 1)
        expected = accumulated(step, split(kind, index=index, micro=16, effective=effective))
        for micro, world_size in ((1, 1), (2, 1), (4, 3)):
            batches = split(kind, index=index, micro=micro, world_size=world_size, effective=effective)
            assert_same(accumulated(step, batches), expected)


def test_rows_that_come_twice_in_a_step_are_no_sources_of_themselves() -> None:
    def of(part_weight: float, effective: int, micro: int) -> list[AnyBatch]:
        parts = [packed(weight=part_weight)]
        made = BatchStream(parts, effective_batch=effective, micro_batch=micro, seed=0, pairs=True)
        return [batch for index in range(3) for batch in made.step(index)]

    step = step_of("packed")
    step.begin(0, 10)
    for batch in of(2.5, 30, 6):
        plan = step.drawn(batch)["d"]
        source = plan.source
        parts = source.parts if isinstance(source, Joined) else (source,)
        rows, begin = batch.example_ids[plan.base.rows], 0
        for part in parts:
            assert isinstance(part, (OwnStates, OtherStates))
            there = batch if isinstance(part, OwnStates) else part.batch
            end = begin + len(part.places)
            assert (there.example_ids[part.places.rows] != rows[begin:end]).all()
            begin = end
    assert_same(accumulated(step, of(2.5, 30, 10)), accumulated(step, of(2.5, 30, 30)))


def test_a_stream_that_is_not_paired_depends_on_the_split() -> None:
    """What would be seen of a training whose rows are not dealt out in pairs."""
    step = step_of("packed")
    step.begin(3, 10)
    first, other = (
        accumulated(step, list(stream("packed", micro=micro, pairs=False).step(0)))[0] for micro in (16, 4)
    )
    assert abs(first["diito"] - other["diito"]) > 1e-4
    assert first["kl"] == pytest.approx(other["kl"], rel=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_even_micro_batches_cost_the_same_and_run_no_source_again(kind: Kind) -> None:
    step = step_of(kind)
    step.begin(3, 10)
    counted = []
    for micro in (16, 8, 4, 2):
        batches = split(kind, micro=micro)
        assert all(isinstance(step.drawn(batch)["d"].source, OwnStates) for batch in batches)
        with FlopCounterMode(display=False) as seen:
            accumulated(step, batches)
        positions = sum(batch.input_ids.numel() for batch in batches)
        counted.append(seen.get_total_flops() / positions)
    assert counted == pytest.approx([counted[0]] * 4, rel=0.1 if kind == "examples" else 0.02)


@pytest.mark.long
def test_two_processes_end_as_one_does(tmp_path: Path) -> None:
    """Trained by the engine, sixteen rows a step: losses, weights and optimizer states."""
    whole = Run("whole", step="interchange", micro_batch=16)
    told = train(tmp_path, whole)
    assert told["error"] is None, told
    runs = [Run("ddp", step="interchange", micro_batch=4), Run("ddp-1", step="interchange", micro_batch=1)]
    for rank in launch(tmp_path, 2, runs):
        assert [rank[run.name]["error"] for run in runs] == [None, None]
    for run in runs:
        assert apart(tmp_path / run.name, tmp_path / "whole") < EXACT, run.name


numbers = st.lists(st.integers(0, 30), min_size=1, max_size=25).map(lambda rows: np.array(rows, np.int64))


@given(rows=numbers, unique=st.booleans(), seed=st.integers(0, 3))
@settings(deadline=None)
def test_pairs_are_disjoint_and_never_of_a_row_with_itself(rows: np.ndarray, unique: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.permutation(np.unique(rows) if unique else rows)
    order = in_pairs(rows)
    assert sorted(order.tolist()) == list(range(len(rows)))
    found = sources(rows[order])
    paired = rows[order]
    kept = found != NO_SOURCE
    assert (paired[kept] != paired[found[kept]]).all()
    assert len(set(found[kept].tolist())) == kept.sum()
    if len(rows) > 1 and np.unique(rows, return_counts=True)[1].max() <= len(rows) // 2:
        assert kept.all()
    lone = 3 if len(rows) % 2 else 0
    mutual = np.arange(len(rows) - lone)
    mutual = mutual[kept[: len(mutual)]]
    assert (found[found[mutual]] == mutual).all()


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    most=st.integers(1, 9),
    world=st.integers(1, 4),
    cost=st.integers(0, 20),
)
@settings(deadline=None)
def test_every_row_is_dealt_once_and_pairs_together(
    lengths: list[int], most: int, world: int, cost: int
) -> None:
    falling = np.array(sorted(lengths, reverse=True), np.int64)
    ranks = [
        dealt(falling, rank=rank, world_size=world, most=most, cost=cost, pairs=True) for rank in range(world)
    ]
    assert len({len(groups) for groups in ranks}) == 1
    groups = [group for rank in ranks for group in rank]
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(lengths)))
    assert all(len(group) <= most for group in groups)
    source = sources(np.arange(len(lengths)))
    again = sum(len(sources_within(group, source)[1]) for group in groups if len(group))
    if most > 1:
        assert again <= (2 if len(lengths) % 2 else 0)
        if world == 1 and most > 2 and len(lengths) > 1:
            assert again == 0
    if len(lengths) > 1 and not len(lengths) % 2:
        assert share_run_again(len(lengths), micro_batch=most, world_size=world) == float(most == 1)


def test_sources_stay_with_a_batch_that_moves_to_a_device() -> None:
    for kind in KINDS:
        batch = split(kind, micro=4)[0]
        assert isinstance(batch.sources, Sources)
        moved = batch.to(torch.device("meta"))
        assert moved.sources is batch.sources and moved.origin is batch
