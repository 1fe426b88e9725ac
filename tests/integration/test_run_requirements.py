"""What a recipe needs and a machine lacks is named, and nothing of a recipe that can run."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.pipeline.checks import requirements
from stlm_kd.pipeline.checks.requirements import missing_here
from stlm_kd.recipe import Recipe, load, resolved_yaml
from stlm_kd.recipe.locate import built_in

OFFLINE = [recipe.name for recipe in built_in() if recipe.name.startswith("sample-")]

RECIPE = """
task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: a.txt, validation: v.txt}
objectives: [{loss: labels}]
train: {steps: 2}
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STLM_KD_DATA", raising=False)
    Path("a.txt").write_text("some text", encoding="utf-8")
    Path("v.txt").write_text("other text", encoding="utf-8")
    Path("mine.yaml").write_text(RECIPE, encoding="utf-8")
    return "mine.yaml"


def lines(recipe: Recipe) -> list[str]:
    return [str(fault) for fault in missing_here(recipe)]


@pytest.mark.parametrize("name", OFFLINE)
def test_the_sample_recipes_run_everywhere(name: str, mine: str) -> None:
    assert lines(load(name)) == []


@pytest.mark.parametrize("name", [recipe.name for recipe in built_in()])
def test_a_built_in_recipe_reads_no_variable_and_its_mirrors_are_found(
    name: str, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load(name)
    assert "$" not in resolved_yaml(recipe)
    of_hub = [line for line in lines(recipe) if "nyu-mll/glue" in line]
    for task in ("cola", "mrpc", "sst2", "qnli"):
        Path("mirrors/glue", task).mkdir(parents=True)
        for split in ("train", "validation"):
            Path("mirrors/glue", task, f"{split}.jsonl").write_text("{}")
    monkeypatch.setenv("STLM_KD_DATA", "mirrors")
    assert not [line for line in lines(recipe) if "nyu-mll/glue" in line]
    assert bool(of_hub) == ("nyu-mll/glue" in resolved_yaml(recipe))


MISSING = {
    "a file": (["data.train=b.txt"], "data.train.path: b.txt: no such file or folder"),
    "a variable": (["data.train=$NOWHERE_AT_ALL/b.txt"], "data.train.path: $NOWHERE_AT_ALL not set"),
    "a tokenizer": (
        ["student.tokenizer=some/tokenizer"],
        "student.tokenizer: some/tokenizer: not in the cache",
    ),
    "no Hub id": (
        ["student.tokenizer=/no/where/at/all"],
        "student.tokenizer: /no/where/at/all: no such folder",
    ),
    "a teacher": (
        ["teachers=[{name: a, model: some/model}]", "objectives=[{loss: forward_kl}]"],
        "teachers[0].model: some/model: not in the cache",
    ),
    "a teacher's recipe": (
        ["teachers=[{name: a, recipe: bert-cola, adapt: {}}]", "objectives=[{loss: forward_kl}]"],
        "teachers[0].recipe.student.tokenizer, teachers[0].recipe.student.model: bert-base-cased: not in",
    ),
    "a data set": (
        ["data.train={hub: some/data}"],
        "data.train.hub: some/data: not in the cache",
    ),
    "rows of lm-eval": (
        ["eval=[{suite: lm-eval, tasks: [blimp]}]"],
        "eval[0] (lm-eval): blimp: nyu-mll/blimp is neither reachable",
    ),
    "data to fine-tune on": (
        ["eval=[{suite: glue, tasks: [rte], source: local}]"],
        "eval[0] (glue): glue: data of 1 of 1 tasks is missing",
    ),
    "a text": (
        ["eval=[{suite: perplexity, on: wikitext}]"],
        "eval[0] (perplexity): wikitext: no test.txt[.gz]",
    ),
}


@pytest.mark.parametrize("what", sorted(MISSING))
def test_what_is_missing_is_named(what: str, mine: str) -> None:
    overrides, expected = MISSING[what]
    if what == "a teacher's recipe":
        Path("bert.yaml").write_text(
            RECIPE.replace("preset: stlm-nano", "model: bert-base-cased").replace(
                "{train: bpe, size: 300}", "bert-base-cased"
            ),
            encoding="utf-8",
        )
        overrides = [overrides[0].replace("bert-cola", "bert.yaml"), overrides[1]]
    (found,) = lines(load(mine, overrides))
    assert found.startswith(expected)


@pytest.mark.parametrize("package", ["wandb", "deepspeed"])
def test_an_optional_package_is_named_where_it_is_asked_for(
    package: str, mine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = ["tracking=[wandb]"] if package == "wandb" else ["engine.deepspeed={zero: 1}"]
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == package else importlib.util)
    (found,) = lines(load(mine, changes))
    assert f"the package {package} is not installed; pip install" in found
    monkeypatch.setattr(requirements, "find_spec", lambda name: importlib.util)
    assert lines(load(mine, changes)) == []


def test_validate_and_the_dry_run_end_with_5_where_something_is_missing(mine: str) -> None:
    runner = CliRunner()
    fine = [
        runner.invoke(app, words)
        for words in (["recipe", "validate", mine], ["distill", "-r", mine, "--dry-run"])
    ]
    assert [done.exit_code for done in fine] == [0, 0]
    change = "data.train=b.txt"
    checked = runner.invoke(app, ["recipe", "validate", mine, change])
    assert checked.exit_code == 5 and "mine.yaml: OK, hash" in checked.stdout
    assert checked.stderr.splitlines()[0] == "mine.yaml: cannot run here: 1 missing"
    planned = runner.invoke(app, ["distill", "-r", mine, change, "--dry-run"])
    assert (
        planned.exit_code == 5 and "train on b.txt" in planned.stdout and "b.txt: no such" in planned.stderr
    )
    told = runner.invoke(app, ["recipe", "validate", mine, change, "--json"])
    assert told.exit_code == 5
    assert [entry["place"] for entry in json.loads(told.stdout)["missing"]] == ["data.train.path"]
