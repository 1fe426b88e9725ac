"""What a recipe from elsewhere may not ask for; the malicious ones are in tests/support/hostile.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.errors import RecipeError
from stlm_kd.recipe.foreign import check_fetched, foreign_faults
from stlm_kd.recipe.locate import built_in, folder
from stlm_kd.recipe.overrides import apply
from stlm_kd.recipe.yaml import parse
from tests.support.hostile import GOOD, Hostile, corpus

ORIGIN = "hf://mallory/r@" + "1" * 40
ASKING = [case for case in corpus() if case.is_data]


@pytest.mark.parametrize("name", sorted(recipe.name for recipe in built_in()))
def test_a_built_in_recipe_from_elsewhere_would_only_miss_its_variables(name: str) -> None:
    text = (folder() / f"{name}.yaml").read_text()
    found = foreign_faults(parse(text, origin=ORIGIN))
    assert all("variables are not filled in" in fault.message for fault in found)
    lines = [row.partition("#")[0] for row in text.splitlines()]
    assert len(found) == sum(row.count("$") for row in lines)


@pytest.mark.parametrize("case", ASKING, ids=[case.name for case in ASKING])
def test_the_same_recipe_is_not_checked_where_the_user_wrote_it(case: Hostile) -> None:
    text = case.files["recipe.yaml"].decode()
    assert foreign_faults(parse(text, origin=ORIGIN))
    assert foreign_faults(parse(text)) == foreign_faults(parse(text, origin="recipes/mine.yaml")) == []


@pytest.mark.parametrize(
    ("line", "override"),
    [
        ("tracking: [wandb]", "tracking=[wandb]"),
        ("teachers: [{name: t, model: /models/t}]", "teachers[0].model=/models/t"),
        ("teachers: [{name: t, model: ~/t}]", "teachers=[{name: t, model: ~/t}]"),
    ],
)
def test_what_the_user_says_on_the_command_line_is_allowed(line: str, override: str) -> None:
    root = parse(f"{GOOD}{line}\n", origin=ORIGIN)
    assert len(foreign_faults(root)) == 1
    assert apply(root, override, lambda node: None) is None
    assert foreign_faults(root) == []


def test_all_faults_are_found_with_place_line_and_origin() -> None:
    text = "data:\n  train: [~/a.txt, {path: $B}]\n  labels: ['~', '$', '../..']\ntracking: wandb\n"
    text += "t\u0435sk: clm\n"
    found = [str(fault) for fault in foreign_faults(parse(text, origin=ORIGIN))]
    assert found == [
        f"data.train[0] ({ORIGIN} line 2): ~/a.txt found; expected a path inside the recipe's folder; to use "
        "it, give data.train[0]=… on the command line",
        f"data.train[1].path ({ORIGIN} line 2): $B found; variables are not filled in for a recipe from "
        "elsewhere; to use it, give data.train[1].path=… on the command line",
        f"tracking ({ORIGIN} line 4): wandb found; it would send data to a service; ask for it on the "
        "command line: tracking=[…]",
        f"t\\u0435sk ({ORIGIN} line 5): a key with letters beyond ASCII, which may look like another key",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "data: {train: data/train.txt, labels: ['$', ../.., C:x]}",
        "data: {train: {path: data/x.txt, documents: {separator: '$$ ../ ~'}, column: C:text}}",
        "teachers: [{name: t, model: org/t@v1, classes: {\u0434\u0430: 'yes'}, cache: auto}]",
        "teachers: [{name: t, recipe: teachers/t.yaml}, {name: u, recipe: bert-cola}]",
        "teachers: [{name: t, recipe: 'hf://a/b@v1/x.yaml'}, {name: u, recipe: 'git+https://h/x@v1'}]",
        "extends: https://h.org/x.yaml#sha256=" + "a" * 64,
        "tracking: [tensorboard]",
        "student: {tokenizer: org/tok, architecture: {model_type: llama, hidden_act: silu, rope_theta: 1e4}}",
        "eval: [{suite: lm-eval, tasks: [blimp, arc_easy]}, {suite: glue, tasks: [cola]}]",
    ],
)
def test_ordinary_recipes_have_no_fault(line: str) -> None:
    assert foreign_faults(parse(line, origin=ORIGIN)) == []


def test_a_good_folder_passes_and_its_lock_may_lie_beside_the_recipe(tmp_path: Path) -> None:
    here = tmp_path
    (here / "recipe.yaml").write_text(GOOD)
    check_fetched(here, here / "recipe.yaml")
    (here / "recipe.lock").write_text(f"format: 1\nrecipe: sha256:{'a' * 64}\nmade: {{by: x}}\n")
    (here / "results.json").write_text("{}")
    check_fetched(here, here / "recipe.yaml")
    (here / "recipe.lock").write_text("format: 1\n")
    with pytest.raises(RecipeError, match=r"recipe\.lock"):
        check_fetched(here, here / "recipe.yaml")
