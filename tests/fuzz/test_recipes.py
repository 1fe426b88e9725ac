"""Whatever a recipe, an override or a sweep says, the answer is a recipe or one message of ours."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from stlm_kd.pipeline.plan import plan
from stlm_kd.pipeline.sweep import sweep_recipes
from stlm_kd.recipe.load import load, recipe_hash, resolved_yaml
from stlm_kd.recipe.overrides import settings
from stlm_kd.recipe.suites import suites
from stlm_kd.recipe.yaml import dump, parse
from stlm_kd.recipes import built_in
from tests.support.mutations import (
    TEXTS,
    TIMES,
    mutated,
    mutated_text,
    odd_override,
    override_keys,
    random_value,
    wrong_answers,
)

BUILT_IN = {recipe.name: recipe.path.read_text("utf-8") for recipe in built_in()}
TREES = {name: parse(text).plain() for name, text in BUILT_IN.items()}
SHARES = [pytest.param(0, 200), pytest.param(200, 3000 * TIMES, marks=pytest.mark.long)]
SHARES_OF_OVERRIDES = [pytest.param(0, 150), pytest.param(150, 1200 * TIMES, marks=pytest.mark.long)]


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """The time of imports is not that of a case."""
    for name in BUILT_IN:
        plan(load(name), name=name)


@pytest.mark.parametrize(("begin", "end"), SHARES)
def test_a_recipe_that_was_changed_at_random(
    begin: int, end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def case(number: int) -> tuple[str, Callable[[], object]]:
        draw = random.Random(f"recipe {number}")
        name = draw.choice(list(BUILT_IN))
        as_text = draw.random() < 0.4
        changed = mutated_text(BUILT_IN[name], draw) if as_text else mutated(TREES[name], draw)
        try:
            text = changed if as_text else dump(changed)
        except ValueError:  # numbers of too many digits
            text = "{}"
        Path("recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        return text, _loaded_twice

    assert wrong_answers(case, begin, end) == []


def _loaded_twice() -> None:
    """What is accepted has a plan, and means the same when it is written out and read again."""
    recipe = load("recipe.yaml")
    assert plan(recipe, name="recipe").text
    Path("again.yaml").write_text(resolved_yaml(recipe), "utf-8")
    assert recipe_hash(load("again.yaml")) == recipe_hash(recipe)


@pytest.mark.parametrize(("begin", "end"), SHARES_OF_OVERRIDES)
def test_overrides_sweeps_and_suites_that_are_out_of_place(begin: int, end: int) -> None:
    keys = {name: override_keys(tree) for name, tree in TREES.items()}

    def case(number: int) -> tuple[object, Callable[[], object]]:
        draw = random.Random(f"override {number}")
        name = draw.choice(list(BUILT_IN))
        changes = [odd_override(keys[name], draw) for _ in range(draw.choice((1, 1, 1, 2)))]
        kind = draw.choice(("load", "load", "load", "settings", "suites", "sweep", "sweep"))
        if kind == "load":
            return (name, changes), lambda: load(name, changes)
        if kind == "settings":
            return changes, lambda: settings(changes)
        if kind == "suites":
            options = changes[0].replace("=", ": ", 1)
            words = [draw.choice((*TEXTS, f"{{suite: lm-eval, {options}}}", f"{{{options}}}"))]
            return words, lambda: suites(words)
        sweeps = [f"{draw.choice(keys[name])}={_values(draw)}" for _ in range(draw.choice((1, 1, 2)))]
        return (name, sweeps), lambda: sweep_recipes(name, [], sweeps)

    assert wrong_answers(case, begin, end) == []


def _values(draw: random.Random) -> str:
    return json.dumps([random_value(draw) for _ in range(draw.choice((1, 2, 2, 3)))])


def test_a_sweep_of_too_many_runs_is_refused_before_any_is_read() -> None:
    sweeps = [f"train.{key}={list(range(1, 40))}" for key in ("steps", "learning_rate", "seed")]
    kind = pytest.raises(Exception, match="59,319 combinations found; expected at most 1000")
    with kind:
        sweep_recipes("sample-two-teachers", [], sweeps)
