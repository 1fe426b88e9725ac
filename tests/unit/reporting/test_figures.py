"""The figures of a run: panels for the loss, its terms and each group of measures, as a PNG and in pages."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from stlm_kd.artifacts.results import Row, Score, SuiteResult
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.reporting.figures import draw_curves, interval_drawing, panel_drawing
from stlm_kd.reporting.run_page.facts import Line, Panel
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


def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path, drawn: list[Figure]) -> None:
    folder = written(tmp_path / "1", {1: {"$\\nonsense{$/a": 0.5}})
    draw_curves({"$\\frac{$": [folder], "b": [folder]}, tmp_path / "curves.png", unit="nats/tok")
    loss, measures = drawn[0].axes
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["$\\frac{$", "b"]
    assert measures.get_ylabel() == "$\\nonsense{$"


def number(text: str) -> float:
    """What a number beside an axis says."""
    factors = {"k": 1e3, "M": 1e6}
    return float(text[:-1]) * factors[text[-1]] if text[-1] in factors else float(text)


@given(st.floats(-1e6, 1e6), st.floats(0.01, 1e6), st.integers(1, 10**6))
def test_points_stand_where_the_numbers_of_the_axes_say(low: float, width: float, steps: int) -> None:
    width = max(width, 0.01 * abs(low))
    points = ((0.0, low), (float(steps), low + width))
    figure = panel_drawing(Panel("g", "t", "", (Line("a", "", points),)))
    (curve,) = figure.curves
    assert curve.path == [place[:2] for place in curve.points]
    for axis, ticks in enumerate((figure.x_ticks, figure.y_ticks)):
        assert 2 <= len(ticks) <= 7
        scale = np.polyfit([number(text) for _, text in ticks], [at for at, _ in ticks], 1)
        expected = np.polyval(scale, [point[axis] for point in points])
        assert [place[axis] for place in curve.path] == pytest.approx(list(expected), abs=0.5)
        first, last = figure.box[axis], figure.box[axis + 2]
        assert all(first <= at <= last for at, _ in ticks)
        assert all(first <= place[axis] <= last for place in curve.path)


@pytest.mark.parametrize("value", [0.0, 5e-324, -3.0, 1e15])
def test_a_single_value_is_drawn_inside_its_axes(value: float) -> None:
    figure = panel_drawing(Panel("g", "t", "", (Line("a", "", ((2.0, value),)),)))
    ((x, y, tooltip),) = figure.curves[0].points
    left, top, right, bottom = figure.box
    assert left <= x <= right and top <= y <= bottom
    assert tooltip == f"a: {value:.4g} at step 2" and len(figure.y_ticks) > 1


def test_a_long_curve_is_thinned_but_keeps_its_ends() -> None:
    points = tuple((float(step), float(step)) for step in range(1001))
    (curve,) = panel_drawing(Panel("g", "t", "", (Line("a", "1", points),))).curves
    tooltips = [tooltip for _, _, tooltip in curve.points]
    assert len(tooltips) == 150
    assert (tooltips[0], tooltips[-1]) == ("a, seed 1: 0 at step 0", "a, seed 1: 1000 at step 1,000")


def test_a_single_models_bar_spans_1_96_standard_errors_either_way() -> None:
    def row(name: str, value: float, stderr: float | None) -> Row:
        scores = (Score("t", "accuracy", value, stderr, 100),)
        return Row(name, "teacher", 1, None, None, (), ((SuiteResult("lm-eval", scores),),))

    table = ResultsTable([row("a", 0.5, 0.1), row("b", 0.25, None)])
    figure = interval_drawing(table, table.metrics[0])
    assert figure is not None
    first, second = figure.curves
    scale = np.polyfit([at for at, _ in figure.x_ticks], [number(text) for _, text in figure.x_ticks], 1)
    (low, _), (high, _) = first.path
    assert np.polyval(scale, [low, high, first.points[0][0]]) == pytest.approx([0.304, 0.696, 0.5], abs=0.002)
    assert second.path[0] == second.path[1] == second.points[0][:2]
    assert (first.name, second.name) == ("a: 0.5000 (se 0.1000)", "b: 0.2500")
