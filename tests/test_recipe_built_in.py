"""The recipes that come with the package."""

import pytest

from stlm_kd.recipe import from_values, load, plain
from stlm_kd.recipe.source import built_in, locate, text_of

NAMES = [recipe.name for recipe in built_in()]


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_recipe_is_valid_and_says_the_same_when_it_is_written_out(name: str) -> None:
    recipe = load(name)
    assert from_values(plain(recipe), origin=name) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_every_built_in_recipe_opens_with_its_purpose_and_command(name: str) -> None:
    (recipe,) = (r for r in built_in() if r.name == name)
    header = [line for line in text_of(recipe.path).splitlines() if line.startswith("#")]
    assert recipe.purpose
    assert any(f"-r {name}" in line for line in header)


def test_a_built_in_name_may_be_written_as_a_file() -> None:
    assert locate("stlm-47m-clm") == locate("stlm-47m-clm.yaml")
    assert locate("recipes/stlm-47m-clm.yaml").resolve() == locate("stlm-47m-clm").resolve()
