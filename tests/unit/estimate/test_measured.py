"""From where on a distilled student was better than its control: against hand-made trainings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.artifacts.reports import REPORT
from stlm_kd.errors import CheckpointError
from stlm_kd.estimate.measured import BreakEven, break_evens, overtakes, summary

CURVES = st.dictionaries(st.integers(0, 9), st.integers(0, 20), max_size=6).map(
    lambda found: sorted(found.items())
)


def training(folder: Path, flops: int | None, losses: Mapping[int, float]) -> None:
    folder.mkdir(parents=True)
    counts = dict.fromkeys(("parameters", "tokens_seen", "tokens_of_text", "best_step"), 1)
    report = {**counts, "best_loss": 1.0, "seconds": 1.0, "stopped": "done", "steps": 40, "flops": flops}
    (folder / REPORT).write_text(json.dumps(report))
    validations = (
        {"kind": "validation", "stage": "s", "step": step, "steps": 40, "losses": {"labels": loss}}
        for step, loss in losses.items()
    )
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in validations))


def test_pairs_of_trainings_are_compared_at_equal_flops(tmp_path: Path) -> None:
    students = tmp_path / "students"
    training(students / "student" / "seed-2", 4000, {0: 9.0, 10: 5.0, 20: 3.0, 40: 3.5})
    training(students / "equal-compute" / "seed-2", 4000, {0: 9.0, 10: 4.0, 30: 3.75})
    training(students / "student" / "seed-10", 4000, {0: 9.0, 40: 5.0})
    training(students / "equal-compute" / "seed-10", 2000, {0: 9.0, 20: 4.0})
    training(students / "student" / "seed-3", 4000, {0: 9.0, 40: 5.0})
    training(students / "student" / "seed-4", None, {0: 9.0, 40: 5.0})
    training(students / "equal-compute" / "seed-4", 2000, {0: 9.0, 20: 4.0})
    assert break_evens(tmp_path) == ()  # of no run
    (tmp_path / "run.json").write_text("{}")
    found = break_evens(tmp_path)
    assert found == (
        BreakEven(2, 4000, 2000, 3.0, 3.75),  # step 20, 100 FLOPs each
        BreakEven(10, 4000, None, 5.0, 4.0),
    )
    assert summary(found[:1]) == (
        "from 50% of the student's FLOPs on every seed was better than its control at equal compute (50% to "
        "50%), at the end by 0.750 nats"
    )
    assert summary(found) == (
        "at its end 1 of 2 seeds were better than their control at equal compute, by -0.125 nats in the mean"
    )


@given(CURVES, CURVES)
def test_it_stays_better_from_there_on_and_is_not_before(
    own: list[tuple[float, float]], control: list[tuple[float, float]]
) -> None:
    def is_better(flops: float) -> bool:
        best = [[loss for at, loss in one if at <= flops] for one in (own, control)]
        return bool(best[0]) and (not best[1] or min(best[0]) < min(best[1]))

    found = overtakes(own, control)
    if found is None:
        assert not is_better(10)
    else:
        assert all(is_better(flops) for flops in range(int(found), 11))
        assert found == 0 or not is_better(found - 1)


def test_damaged_reports_are_named(tmp_path: Path) -> None:
    training(tmp_path / "students" / "student" / "seed-1", 10, {0: 1.0})
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "students" / "student" / "seed-1" / REPORT).write_text("{")
    with pytest.raises(CheckpointError, match=r"seed-1.report\.json"):
        break_evens(tmp_path)
