"""``distill --sweep``: a run for each value, and the students in one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import stlm_kd.pipeline.distill
import stlm_kd.pipeline.sweep
from stlm_kd.cli.main import app
from stlm_kd.pipeline.run import Run
from stlm_kd.pipeline.sweep import _value_name, sweep_recipes
from stlm_kd.recipe import Recipe
from tests.support.compared import run_folder, seeds_of

RECIPE = """
task: classification
student: {tokenizer: t, architecture: {model_type: bert}}
data: {train: a.jsonl, validation: b.jsonl}
objectives: [{loss: labels}]
train: {steps: 10}
eval: [classification]
"""


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Recipe]:
    """The recipes that were run, by the names of their runs; later ones are the better ones."""
    runs: dict[str, Recipe] = {}

    def distill(recipe: Recipe, *, name: str, output_dir: Path, **_: object) -> Run:
        runs[name] = recipe
        rows = {
            "teacher t": ("teacher", seeds_of(0.9, 50, 1)),
            "distilled student": ("student", seeds_of(0.4 + 0.2 * len(runs), 10 * len(runs))),
            "no-teacher": ("control", seeds_of(0.5, 90)),
        }
        return Run(Path(run_folder(output_dir / name, rows)))

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(stlm_kd.pipeline.distill, "distill", distill)
    return runs


def sweep(value: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["distill", "-r", "mine.yaml", "--sweep", value, *words])


def test_each_value_is_a_run_and_the_students_alone_are_compared_with_the_first(
    done: dict[str, Recipe],
) -> None:
    found = sweep("train.learning_rate=[1e-4, 2e-4]", "train.steps=3", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    assert [(r.train.learning_rate, r.train.steps) for r in done.values()] == [(1e-4, 3), (2e-4, 3)]
    assert [Path(folder).name for folder in told["folders"]] == [*done] == ["mine-0.0001", "mine-0.0002"]
    students = [f"{name}: distilled student" for name in done]
    assert told["comparison"]["baseline"] == students[0]
    assert {row["name"] for row in told["comparison"]["comparisons"]} == {students[1]}


def test_two_sweeps_make_a_grid_named_by_both_values(done: dict[str, Recipe]) -> None:
    found = sweep("train.learning_rate=[1e-4, 2e-4]", "--sweep", "train.steps=[3, 4, 5]", "--json")
    assert found.exit_code == 0, found.stderr
    told = json.loads(found.stdout)
    rates_and_steps = [(rate, steps) for rate in (1e-4, 2e-4) for steps in (3, 4, 5)]
    assert [(r.train.learning_rate, r.train.steps) for r in done.values()] == rates_and_steps
    names = [f"mine-{rate:.4f}-{steps}" for rate, steps in rates_and_steps]
    assert [Path(folder).name for folder in told["folders"]] == [*done] == names
    assert told["comparison"]["baseline"] == f"{names[0]}: distilled student"
    compared = {row["name"] for row in told["comparison"]["comparisons"]}
    assert compared == {f"{name}: distilled student" for name in names[1:]}


def test_it_ends_in_one_table_and_the_places_of_the_runs(done: dict[str, Recipe]) -> None:
    found = sweep("train.steps=[3, 4]")
    assert found.exit_code == 0, found.stderr
    assert "mine-4: distilled student" in found.stdout and "runs/mine-4" in found.stdout
    assert "teacher t" not in found.stdout and "no-teacher" not in found.stdout


@pytest.mark.parametrize(
    ("value", "words", "message"),
    [
        ("train.steps=3", (), "expected a list of different values"),
        ("train.steps=[3]", (), "expected a list of different values"),
        ("train.steps=[3, 3]", (), "expected a list of different values"),
        ("train.steps=[3, 4]", ("eval=[]",), "mine.yaml has no eval"),
        ("train.steps=[3, 0]", (), "train.steps=0"),
        ("train.steps=[3, 4]", ("--sweep", "train.steps=[5, 6]"), "train.steps: given twice"),
        ("train.steps=[3, 4]", ("train.steps=5",), "train.steps: given twice"),
        ("seeds=[[1], [2]]", ("--seeds", "3"), "seeds: given twice"),
    ],
)
def test_a_fault_is_told_before_anything_is_run(
    done: dict[str, Recipe], value: str, words: tuple[str, ...], message: str
) -> None:
    found = sweep(value, *words)
    assert found.exit_code in (2, 3) and message in found.stderr
    assert not done


@pytest.mark.parametrize(
    "words",
    [
        ("distill", "-r", "mine.yaml", "--recipe", "mine.yaml"),
        ("distill", "-r", "mine.yaml", "--seeds", "1", "--seeds=2"),
        ("distill", "-r", "mine.yaml", "train.steps=3", "train.steps=4"),
        ("eval", "m", "--suite", "perplexity", "--limit", "3", "--limit", "4"),
        ("eval", "m", "--suite", "perplexity", "--limit", "3", "--set", "limit=4"),
        ("recipe", "validate", "mine.yaml", "train.steps=3", "train.steps=4"),
        ("adapt-teacher", "m", "task=clm", "task=mlm"),
        ("runs", "list", "--output-dir", "a", "--output-dir", "b"),
    ],
)
def test_what_is_given_twice_is_refused_and_the_last_is_not_taken(
    done: dict[str, Recipe], words: tuple[str, ...]
) -> None:
    found = CliRunner().invoke(app, [*words])
    assert found.exit_code == 2 and "given twice" in found.stderr
    assert not done


def test_what_may_be_repeated_may_be_repeated(done: dict[str, Recipe]) -> None:
    words = ["distill", "-r", "mine.yaml", "train.steps=3", "data.context=64", "--json", "--json"]
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, found.stderr
    assert [recipe.data.context for recipe in done.values()] == [64]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["a-3", "a", "a/"], ["a-3", "a", "a-2"]),
        (["a", "a/", "a-2", "a//"], ["a", "a-2", "a-2-2", "a-3"]),
        (["b", "c"], ["b", "c"]),
    ],
)
def test_names_that_collide_are_counted_up_until_free(values: list[str], names: list[str]) -> None:
    runs = sweep_recipes("sample-two-teachers", [], [f"data.train.domain={json.dumps(values)}"])
    assert [*runs] == [f"sample-two-teachers-{name}" for name in names]
    assert [recipe.data.train[0].domain for recipe in runs.values()] == values


@pytest.mark.parametrize(
    ("value", "short"),
    [("-1", "-1"), ("1", "1"), ("-0.5", "-0.5"), ("[1, -2]", "1--2"), ("1e-05", "1e-05"), ('"a-3"', "a-3")],
)
def test_the_sign_of_a_number_is_part_of_the_name(value: str, short: str) -> None:
    assert _value_name(f"key={value}") == short
