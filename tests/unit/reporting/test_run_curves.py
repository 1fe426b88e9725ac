"""The picture of a run: a panel for the loss, one for its terms, and one for each group of measures."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from stlm_kd.reporting.figures import draw_curves
from stlm_kd.tracking import StepMetrics, open_tracker

STEP = StepMetrics(1, 4, 3.0, {"labels": 3.0}, 1e-3, 0.5, 9, 9.0, 1.0, 3.0)
LOWER, UPPER = "d.same/layer0", "d.same/layer1"


def written(folder: Path, measures: dict[int, dict[str, float]]) -> Path:
    tracker = open_tracker(folder, stream=io.StringIO())
    for step, found in measures.items():
        tracker.step(replace(STEP, step=step, losses={"labels": 4.0 - step}, measures=found))
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    found: list[Figure] = []
    save = Figure.savefig

    def saving(self: Figure, file: Path, **options: str) -> None:
        found.append(self)
        save(self, file, **options)

    monkeypatch.setattr(Figure, "savefig", saving)
    return found


def test_each_term_of_the_objective_has_a_line_for_each_seed(tmp_path: Path, drawn: list[Figure]) -> None:
    for name, terms in (("1", {"kl": 2.0, "labels": 5.0}), ("2", {"labels": 4.0, "kl": 0.001})):
        tracker = open_tracker(tmp_path / name, stream=io.StringIO())
        tracker.step(replace(STEP, losses=terms))
    draw_curves({"s": [tmp_path / "1", tmp_path / "2"]}, tmp_path / "curves.png", unit="nats/tok")
    whole, by_term = drawn[0].axes
    assert whole.get_ylabel() == "training loss (nats/tok)"
    assert (by_term.get_ylabel(), by_term.get_yscale()) == ("training loss by term", "log")
    colours = {line.get_ydata()[0]: line.get_color() for line in by_term.get_lines()}  # type: ignore[index]
    assert colours == {2.0: "C0", 0.001: "C0", 5.0: "C1", 4.0: "C1"}
    assert [text.get_text() for text in by_term.get_legend().get_texts()] == ["kl", "labels"]


def test_a_damaged_line_is_not_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = written(tmp_path / "1", {1: {LOWER: 0.2}})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(
            '{"kind": "step"}\n{"kind": "step", "step": 3, "losses": {}}\n{"step": 4, "measures": [1]}\n'
        )
    draw_curves({"s": [folder]}, tmp_path / "curves.png", unit="nats/tok")
    assert [len(axes.get_lines()[0].get_xdata()) for axes in drawn[0].axes] == [1, 1]  # type: ignore[arg-type]


def test_each_group_of_measures_has_a_panel_and_each_measure_and_seed_a_line(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    first = written(tmp_path / "1", {1: {LOWER: 0.2}, 2: {UPPER: 0.3}, 4: {LOWER: 0.6}})
    second = written(tmp_path / "2", {1: {LOWER: 0.1, "d.kl/layer0": 2.0}})
    control = written(tmp_path / "3", {1: {}, 2: {}})
    line = json.loads((first / "metrics.jsonl").read_text().splitlines()[1])
    assert line["measures"] == {UPPER: 0.3}
    draw_curves({"student": [first, second], "control": [control]}, tmp_path / "curves.png", unit="nats/tok")
    panels = [
        (axes.get_ylabel(), {tuple(zip(*each.get_data(), strict=True)) for each in axes.get_lines()})
        for axes in drawn[0].axes
    ]
    losses = {((1, 3.0), (2, 2.0), (4, 0.0)), ((1, 3.0),), ((1, 3.0), (2, 2.0))}
    same = {((1, 0.2), (4, 0.6)), ((2, 0.3),), ((1, 0.1),)}
    assert panels == [
        ("training loss (nats/tok)", losses),
        ("d.same", same),
        ("d.kl", {((1, 2.0),)}),
    ]
    assert [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()] == ["layer0", "layer1"]
