"""Pairs of processes, engine, split, optimizer, task, objectives and placement, against one plain process.

``make test-matrix`` runs the whole grid, of which these are a pairwise cover.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from tests.support.grid import AXES, Cell, all_cells, covering, refusal
from tests.support.grid_worker import EXACT, ROUNDED, is_equal
from tests.support.matrix import found_in, run

REFUSED = (("classification", "dense KL"), ("classification", "learned gate"))


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.long)])
def allowed(request: pytest.FixtureRequest) -> list[Cell]:
    """The cells of at most so many processes that are not refused."""
    cells = [cell for cell in all_cells() if cell.processes <= request.param]
    return [cell for cell in cells if not refusal(cell)]


@pytest.fixture(scope="module")
def cover(allowed: list[Cell]) -> list[Cell]:
    return covering(allowed)


def test_each_pair_of_values_that_is_not_refused_is_covered(allowed: list[Cell], cover: list[Cell]) -> None:
    for one, other in combinations(AXES, 2):
        pairs = [{(getattr(c, one), getattr(c, other)) for c in cells} for cells in (allowed, cover)]
        assert pairs[0] == pairs[1]
    assert len(cover) < 60


def test_what_a_recipe_refuses_says_so() -> None:
    refused = Counter(
        (cell.task, cell.objectives, message) for cell in all_cells() if (message := refusal(cell))
    )
    there = Counter((cell.task, cell.objectives) for cell in all_cells())
    expected = {(task, name): there[task, name] for task, name in REFUSED}
    assert {(task, name): count for (task, name, _), count in refused.items()} == expected
    assert all("only for language models" in text or "vocabulary head" in text for *_, text in refused)


def test_any_processes_engine_and_split_end_as_one_plain_process(cover: list[Cell], tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    run(results, cover)
    found = found_in(results)
    assert found.keys() == set(cover)
    wrong = {str(cell): dict(line) for cell, line in found.items() if not is_equal(dict(line))}
    assert not wrong


def test_a_cell_that_is_off_is_told_from_an_equal_one() -> None:
    line = {"zero": None, "optimizer": "sgd", "losses": 0.0, "weights": 0.0}
    assert is_equal(line)
    assert not is_equal({**line, "weights": 2 * EXACT}) and not is_equal({**line, "losses": 2 * EXACT})
    assert is_equal({**line, "zero": 3, "weights": ROUNDED / 2})
    assert not is_equal({**line, "zero": 3, "weights": 2 * ROUNDED}) and not is_equal({**line, "error": "x"})
    assert replace(all_cells()[0], processes=2) in all_cells()
