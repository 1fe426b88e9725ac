"""The recipes that come with the package."""

import pytest

from stlm_kd.recipe import from_values, load, plain
from stlm_kd.recipe.locate import built_in, locate, text_of

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


DIITO = [name for name in NAMES if name.startswith("diito")]


@pytest.mark.parametrize("name", DIITO)
def test_a_step_of_a_diito_recipe_reads_as_many_tokens_as_the_authors(name: str) -> None:
    """240 lines of WikiText, of more than 11 tokens each, have 133 tokens on average with [CLS] and [SEP]."""
    recipe = load(name)
    assert recipe.train.effective_batch * recipe.data.context == pytest.approx(240 * 133, rel=0.05)
    header = text_of(locate(name))
    assert f"{recipe.train.effective_batch * recipe.data.context:,} tokens a step" in header
    epoch = 103_227_021 * 1.1456 / recipe.data.context * 512 / 510 * recipe.data.fraction  # rows of the text
    told = int(header.split("epochs are about ")[1].split(" steps")[0].replace(",", ""))
    steps = recipe.train.epochs * epoch / recipe.train.effective_batch if recipe.train.epochs else 0
    assert told == pytest.approx(steps, rel=0.03)


@pytest.mark.parametrize("score", ["77.14", "2.24 points", "2.46 %"])
def test_a_score_of_the_diito_paper_stands_with_its_own_row_alone(score: str) -> None:
    row = "diito" if score == "2.46 %" else "diito-causal-cosine"
    assert [name for name in DIITO if score in text_of(locate(name))] == [row]


def test_the_few_shot_study_reads_a_tenth_of_whole_training_sets() -> None:
    for name in NAMES:
        if name.startswith("few-shot"):
            (source,) = load(name).data.train
            assert load(name).data.fraction == 0.1
            assert source.hub is not None or "subset" not in str(source.path)
