"""``vocabulary curve``: what it measures, against the adaptation without training and slow counts."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import load_tokenizer, train_tokenizer
from stlm_kd.estimate.vocabularies.curve import CurvePoint, _lines
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.adaptation import adapt_model
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import load
from stlm_kd.reporting.vocabulary_figure import draw_vocabulary_curve
from tests.support.pico import pico_model

RECIPE = """task: clm
student:
  tokenizer: {trim: a, size: 300}
  architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1,
    num_attention_heads: 2}
teachers: [{name: a, model: teacher, adapt: {tokens: 0}}]
data: {train: {sample: train, size: 40k}, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and its teacher."""
    made = tmp_path_factory.mktemp("curve")
    tokenizer = train_tokenizer([*sample_documents("train", size=40_000)], size=360)
    save_model(pico_model("gpt2", vocabulary=360), tokenizer, made / "teacher")
    (made / "student.yaml").write_text(RECIPE)
    return made


def _curve(*words: str) -> tuple[dict[str, object], str]:
    found = CliRunner().invoke(app, ["vocabulary", "curve", "student.yaml", *words, "--json"])
    assert found.exit_code == 0, found.output
    values: dict[str, object] = json.loads(found.stdout)
    return values, found.stderr


def test_points_are_those_of_an_untrained_adaptation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits per byte are what ``adapt: {tokens: 0}`` reports; a repeated command measures nothing."""
    monkeypatch.chdir(folder)
    found, told = _curve("--sizes", "300,280", "--bytes", "200k")
    points = {point["tokens"]: point for point in found["points"]}  # type: ignore[attr-defined]
    assert [*points] == [280, 300, 360] and told.count("scoring teacher a") == 3
    assert all(point["share"] == 1 and point["exact_rows"] == size for size, point in points.items())
    recipe = load("student.yaml")
    setup = setup_of(recipe, RunContext(folder / "runs"))
    adapt = recipe.teachers[0].adapt
    assert adapt is not None
    adapt_model(setup, adapt, str(folder / "teacher"), name="a", folder=folder / "adapted")
    report = json.loads((folder / "adapted/report.json").read_text())
    assert points[300]["bits_per_byte"] == pytest.approx(report["initialised"], rel=1e-6)
    assert points[360]["bits_per_byte"] == pytest.approx(report["before"], rel=1e-6)
    assert points[300]["above_own"] == pytest.approx(report["initialised"] - report["before"], rel=1e-4)
    assert points[300]["stderr"] > points[300]["above_own_stderr"] > 0
    text = [*sample_documents("train", size=40_000)]
    tokens = sum(len(load_tokenizer(str(folder / "adapted/model")).tokenize(one)) for one in text)
    assert points[300]["tokens_per_byte"] == pytest.approx(tokens / sum(len(t.encode()) for t in text))
    assert points[300]["parameters"] - points[280]["parameters"] == 20 * 16 * 2  # not tied
    assert points[300]["embedding"] == 300 * 16 * 2
    again, told = _curve("--sizes", "300,280", "--bytes", "200k")
    assert again == found and "scoring" not in told
    written = folder / str(found["folder"])
    assert json.loads((written / "curve.json").read_text())["points"] == found["points"]
    with (written / "curve.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [int(row["tokens"]) for row in rows] == [280, 300, 360]
    assert (written / "curve.png").read_bytes()[:4] == b"\x89PNG"
    load_language_model(str(folder / "teacher"), None)  # the teacher is as it was


def test_an_own_vocabulary_is_no_point_of_the_line() -> None:
    """Also where the student's vocabulary is the larger one."""
    points = [
        CurvePoint("a", "student", 500, 0.4, 500, 1.0, 90, 50, 2.0, 0.1),
        CurvePoint("a", "student", 900, 0.3, 600, 0.8, 130, 90, 1.5, None),
        CurvePoint("a", "own", 700, 0.4, 700, 1.0, None, None, 1.25, 0.2),
        CurvePoint("b", "student", 500, 0.4, 500, 1.0, 90, 50),
    ]
    bits, own, parameters = _lines(points)
    assert bits == {"a": [(500, 2.0, 0.1), (900, 1.5, None)]} and own == {"a": (700, 1.25, 0.2)}
    assert parameters == {"all": [(500, 90), (900, 130)], "embedding and head": [(500, 50), (900, 90)]}


def test_a_figure_of_nothing_leaves_none_of_an_earlier_command(tmp_path: Path) -> None:
    file = tmp_path / "curve.png"
    draw_vocabulary_curve({}, {}, {"all": [(300, 90), (400, 100)]}, file)
    assert file.stat().st_size > 0
    draw_vocabulary_curve({}, {}, {"all": []}, file)
    assert not file.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sizes", "90"], "student.tokenizer.size: 90 found; expected at least 25"),
        (["--sizes", "300,4k"], "student.tokenizer.size: 4,000 found; expected at most 360"),
        (["--sizes", "many"], "--sizes: many found; expected a number above 0"),
        (["--sizes", "300,"], "--sizes: '' found; expected a number above 0"),
        (["--bytes", "0"], "--bytes: 0 found; expected a number above 0"),
        (["student.tokenizer=teacher"], "student.tokenizer: teacher has one size; expected one that is made"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    found = CliRunner().invoke(app, ["vocabulary", "curve", "student.yaml", *words])
    assert found.exit_code in (2, 3) and message in found.stderr
