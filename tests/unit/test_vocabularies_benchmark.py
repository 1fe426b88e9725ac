"""The file of finished cells survives a kill in the middle of a line; the table computes shares from it."""

import json
from pathlib import Path
from types import ModuleType

import pytest

SCORES = Path(__file__).parents[2] / "benchmarks" / "scores"


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCORES))
    import vocabulary_cells

    return vocabulary_cells


def settings(cells: ModuleType):
    return cells.Settings(
        model="m",
        data="d",
        tokens=(10, 50),
        learning_rate=1e-3,
        pairs=2,
        questions=3,
        pieces=2,
        large=600,
        small=400,
    )


def test_a_half_written_line_is_dropped_and_the_next_one_is_whole(cells, tmp_path):
    first, second = cells.Model("own"), cells.Model("own", 10, "novels")
    cells.Results(tmp_path).add(first, "novels", {"value": 1.5})
    whole = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(whole + whole[:20])
    results = cells.Results(tmp_path)
    assert results.find(first, "novels")["value"] == 1.5
    assert results.find(second, "novels") is None
    results.add(second, "novels", {"value": 2.5})
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["value"] for line in lines] == [1.5, 2.5]


def test_cheap_cells_come_first_and_none_twice(cells):
    found = list(cells.cells(settings(cells)))
    assert len(set(found)) == len(found) == 12 + (5 + 11 * 2 + 5) + (5 + 5 * 2 + 5) + 3
    assert all(not model.tokens for model, _ in found[:12])
    tokens = [model.tokens for model, score in found if score == cells.NOVELS]
    assert tokens == [0] * 6 + [10] * 5 + [50] * 5


def test_the_table_has_the_share_of_the_gap(cells, tmp_path):
    import vocabulary_table

    results = cells.Results(tmp_path)
    results.add(cells.Model("own"), "novels", {"value": 1.25, "stderr": 0.02, "examples": 2, "seconds": 1800})
    gap = {"mean": 0.025, "low": 0.01, "high": 0.04}
    trimmed = cells.Model("trimmed 600")
    report = {"tokens_by_origin": {"exact": 596, "role": 1, "pieces": 3}, "new_vocabulary": 600}
    results.add(trimmed, "adapted", {"report": report, "place": "p", "seconds": 900})
    results.add(trimmed, "novels", {"value": 1.275, "stderr": 0.02, "difference": gap, "seconds": 900})
    text = vocabulary_table.table(settings(cells), results)
    assert "| trimmed 600 | 99.5% | 1.275, +2.0% (+0.025 [+0.010, +0.040]) |  |  |" in text
    assert text.endswith("2 of 67 cells, 1.0 hours.")
