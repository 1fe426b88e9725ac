"""The estimate's collective operations, against those counted in real trainings of two processes."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import pytest

from stlm_kd.estimate.communication import Collective, ZeroSettings, collectives, sent_bytes
from tests.support.collectives import SMALL, Case, launch, student

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

KINDS = {"allreduce_": "all-reduce", "reduce_": "reduce", "_allgather_base_": "all-gather",
         "_reduce_scatter_base_": "reduce-scatter"}  # fmt: skip
BF16 = {"precision": "bf16", "weights": "bf16"}
CASES = {
    **{
        f"{'ddp' if zero is None else f'zero-{zero}'}-{count}": (Case(zero, count), ZeroSettings())
        for zero in (None, 0, 1, 2, 3)
        for count in (1, 3)
    },
    "bf16-2": (Case(2, 2, **BF16), ZeroSettings(weight_bytes=2)),  # type: ignore[arg-type]
    "bf16-3": (Case(3, 2, **BF16), ZeroSettings(weight_bytes=2)),  # type: ignore[arg-type]
    "whole-3": (Case(3, 2, settings={"stage3_param_persistence_threshold": 0}), ZeroSettings(0)),
    "buckets": (Case(2, 2, settings={"reduce_bucket_size": 300_000}), ZeroSettings()),
    "plain": (Case(2, 2, settings={"reduce_scatter": False}), ZeroSettings()),
    "owner": (
        Case(2, 2, settings={"use_multi_rank_bucket_allreduce": False}),
        ZeroSettings(reduces_to_owner=True),
    ),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    found = launch(tmp_path_factory.mktemp("collectives"), [case for case, _ in CASES.values()])
    return dict(zip(CASES, found, strict=True))


def estimated(name: str) -> tuple[Collective, ...]:
    case, settings = CASES[name]
    sizes = [weight.numel() for weight in student().parameters()]
    return collectives(sizes, case.zero or 0, case.micro_batches, settings)  # type: ignore[arg-type]


def counted(seen: dict[str, Any]) -> list[tuple[str, int]]:
    named = [(KINDS.get(name.partition(".")[0]), size) for name, size in seen["operations"]]
    return [(kind, size) for kind, size in named if kind is not None and size > SMALL]


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_each_kind_are_those_of_the_formulas(seen: dict[str, dict[str, Any]], name: str) -> None:
    expected, found = Counter[str](), Counter[str]()
    for one in estimated(name):
        expected[one.kind] += one.times * one.num_bytes
    for kind, size in counted(seen[name]):
        found[kind] += size
    assert found == expected


@pytest.mark.parametrize("name", [f"zero-{zero}-{count}" for zero in range(3) for count in (1, 3)])
def test_gradients_are_reduced_as_often_as_the_formulas_say(
    seen: dict[str, dict[str, Any]], name: str
) -> None:
    reductions = [kind for kind, _ in counted(seen[name]) if kind == "all-reduce"]
    assert len(reductions) == estimated(name)[0].times


@pytest.mark.parametrize("name", [name for name in CASES if name != "owner"])
def test_sockets_send_what_rings_do(seen: dict[str, dict[str, Any]], name: str) -> None:
    expected = sent_bytes(estimated(name), 2)
    for one in estimated(name):
        if one.kind == "reduce-scatter":  # gloo all-reduces instead: twice as much
            expected += one.times * one.num_bytes // 2
    assert seen[name]["sent"] == pytest.approx(expected, rel=0.01)
