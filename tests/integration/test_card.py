"""Model cards: facts of the run in the Hub's form."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from stlm_kd.artifacts.record import Pinned
from stlm_kd.artifacts.saved_results import Results
from stlm_kd.comparison.results_table import ResultsTable
from stlm_kd.recipe import Recipe, from_values, recipe_hash
from stlm_kd.recipe.lock import Lock, Made
from stlm_kd.reporting.model_card import CardFacts, RecipeFacts, card, recipe_card
from stlm_kd.reporting.tables.results import result_table
from stlm_kd.reporting.templating import cells
from tests.integration.test_report import ADAPTED, TRAINING, rows


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
    (index,) = data.pop("model-index")
    scores = rows()[1].scores[1][0].scores
    (result,) = index["results"]
    assert index["name"] == "a-run distilled student"
    assert {one["type"]: one["value"] for one in result["metrics"]} == {
        one.metric: one.value for one in scores
    }
    assert result["dataset"] == {"name": "examples", "type": "classification"}
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


def recipe_facts(found: Recipe, name: str = "tiny", purpose: str = "", licence: str = "mit") -> RecipeFacts:
    lock = Lock(f"sha256:{recipe_hash(found)}", Made("stlm-kd 1"), seeds=found.seeds)
    pins = [Pinned("dataset", "org/data", None, "1" * 40, licence), Pinned("model", "m/n", "v1", "2" * 40)]
    return RecipeFacts(
        name, "hf://alice/tiny", found, purpose, lock, pins, Results(tuple(rows()), ("better by far",))
    )


def test_a_recipe_card_has_the_table_of_its_results_and_the_commit_of_its_data() -> None:
    held_out = {
        "train": {"sample": "train", "size": "9k"},
        "validation": {"hub": "org/data", "split": "test"},
    }
    found = recipe_facts(recipe(data=held_out))
    content = recipe_card(found)
    data = ModelCard(content).data.to_dict()
    (index,) = data.pop("model-index")
    (result,) = index["results"]
    assert result["dataset"] == {"name": "examples", "type": "org/data", "revision": "1" * 40}
    seeds = [results[0].score("examples", "accuracy").value for results in rows()[1].scores]
    assert result["metrics"][0]["value"] == pytest.approx(sum(seeds) / 2, rel=1e-12)
    assert data == {
        "library_name": "stlm-kd",
        "license": "unknown",
        "base_model": ["org/teacher"],
        "datasets": ["org/data"],
        "tags": ["stlm-kd-recipe", "stlm-kd", "clm", "synthetic-data"],
    }
    printed = [" | ".join(row) for row in cells(result_table(ResultsTable(rows()), "")).rows]
    assert all(f"| {line} |" in content for line in printed) and "- better by far\n" in content
    assert f"| org/data (data set) | main | {'1' * 40} | mit |" in content
    adapted = recipe_card(replace(found, results=Results(adaptations={"gpt2": ADAPTED})))
    assert "- gpt2: bits per byte: 1.5000 before, 1.6250 with the new vocabulary\n" in adapted
    without = recipe_card(replace(found, results=None))
    assert "Not yet run" in without and "model-index" not in ModelCard(without).data.to_dict()


def test_a_hostile_name_adds_nothing_to_a_card() -> None:
    hostile = "x\n---\nlicense: mit\n---\n# big | [a](http://b) ![c](d) <script>`"
    given = recipe_facts(recipe(), hostile, hostile, hostile)
    tame = recipe_card(recipe_facts(recipe(), "tame", "tame", "tame"))
    content = recipe_card(given)
    data = ModelCard(content).data.to_dict()
    assert data["purpose"] == hostile and data["license"] == "unknown"
    assert data.keys() == ModelCard(tame).data.to_dict().keys()
    tame_student, student = (
        card(replace(facts(), run=name, remarks=[name], pins=given.pins)) for name in ("tame", hostile)
    )
    for one, other in ((content, tame), (student, tame_student)):
        text, plain = (re.split(r"\n---\n", whole, maxsplit=1)[1] for whole in (one, other))
        assert len(text.splitlines()) == len(plain.splitlines())
        assert not re.search(r"(?<!\\)(\[a\]|!\[|<script)", text)
