"""Model cards: facts of the run in the Hub's form."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.recipe import Recipe, from_values
from stlm_kd.reporting.model_card import CardFacts, card
from tests.integration.test_report import TRAINING, rows


def recipe(**parts: object) -> Recipe:
    values = {
        "task": "clm",
        "student": {"tokenizer": "some/tokenizer", "preset": "stlm-nano"},
        "teachers": [{"name": "a", "model": "org/teacher"}, {"name": "b", "model": "/a/folder"}],
        "data": {"train": [{"hub": "org/data", "split": "train"}, {"path": "some```where.txt"}]},
        "objectives": [{"loss": "labels"}, {"loss": "forward_kl"}],
        "train": {"steps": 10},
        "seeds": [1, 2],
    }
    return from_values({**values, **parts}, origin="a test")


def facts(found: Recipe | None = None) -> CardFacts:
    scores = ResultsTable(rows())
    return CardFacts("a-run", found or recipe(), "student", 2, TRAINING, scores, ["better by far"], "llama")


def test_the_hub_reads_what_a_card_says() -> None:
    data = ModelCard(card(facts())).data.to_dict()
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "unknown",
        "base_model": ["org/teacher"],
        "datasets": ["org/data"],
        "tags": ["stlm-kd", "knowledge-distillation"],
    }


def test_a_control_is_not_called_distilled_nor_a_child_of_teachers_that_it_never_met() -> None:
    control = card(replace(facts(), variant="no-teacher"))
    data = ModelCard(control).data.to_dict()
    assert "base_model" not in data and data["tags"] == ["stlm-kd"]
    assert "a control without teachers (no-teacher)" in control and "distilled from" not in control


def test_synthetic_data_are_called_synthetic() -> None:
    made = card(facts(recipe(data={"train": {"sample": "train", "size": "20k"}})))
    assert "**synthetic**" in made and "synthetic-data" in ModelCard(made).data.to_dict()["tags"]
    assert "synthetic" not in card(facts()).replace("synthetic-data", "")


def test_scores_are_those_of_the_very_seed_and_of_all() -> None:
    row = rows()[1]
    own, other = (results[0].score("examples", "accuracy") for results in row.scores[::-1])
    (line,) = [line for line in card(facts()).splitlines() if line.startswith("| accuracy")]
    assert f"| {own.value:.4f} ± {own.stderr:.4f} |" in line
    assert f"| {(own.value + other.value) / 2:.4f} ± " in line
    assert "better by far" in card(facts())
    noted = tuple(tuple(replace(one, notes=("made up",)) for one in results) for results in row.scores)
    scores = ResultsTable([replace(row, scores=noted)])
    assert card(replace(facts(), scores=scores)).count("- made up\n") == 1


@pytest.mark.parametrize("family", ["llama", "mobillama"])
def test_its_code_is_python_and_a_recipe_cannot_end_its_block(family: str) -> None:
    content = card(replace(facts(), family=family))
    code = re.search(r"```python\n(.*?)\n```", content, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
    assert ("mobillama.register()" in code[1]) == (family == "mobillama")
    assert content.rstrip().endswith("\n````") and "some```where.txt" in content
