"""Named lists of changes in a recipe."""

from __future__ import annotations

import pytest

from stlm_kd.errors import RecipeError, UsageError
from stlm_kd.recipe.overrides import apply, split
from stlm_kd.recipe.sweep import Variant, variants, without_sweep
from stlm_kd.recipe.yaml import parse

TEXT = """task: clm
train: {steps: 10, clip: 1.0}
seeds: [1, 2]
sweep:
  length:
    - {name: short, train.steps: 5}
    - {train.steps: 1e3, "seeds[1]": 7, data: {text: "a, 'b' é"}}
  bad: [{}, 3, {name: a b}, {train..steps: 1}]
  twice: [{name: a}, {name: a}]
  one: [{name: a}]
"""


def test_the_entries_of_a_list_are_overrides_with_their_own_keys() -> None:
    root = parse(TEXT)
    short, second = variants(root, "length", origin="x.yaml")
    assert short == Variant("short", ("train.steps=5",))
    assert second.name == "2"
    rest = without_sweep(root)
    for override in second.overrides:
        assert apply(rest, override, lambda node: None) is None
    assert rest.plain() == {
        "task": "clm", "train": {"steps": 1000.0, "clip": 1.0}, "seeds": [1, 7], "data": {"text": "a, 'b' é"}
    }  # fmt: skip


def test_a_recipe_without_lists_is_returned_as_it_is() -> None:
    root = parse("task: clm")
    assert without_sweep(root) is root


def test_faults_name_list_entry_and_line() -> None:
    with pytest.raises(RecipeError) as caught:
        variants(parse(TEXT), "bad", origin="x.yaml")
    assert [str(fault) for fault in caught.value.faults] == [
        "sweep.bad[0] (line 8): expected a mapping such as {name: long, train.steps: 1000}",
        "sweep.bad[1] (line 8): expected a mapping such as {name: long, train.steps: 1000}",
        "sweep.bad[2].name (line 8): expected up to 41 letters, digits, dots, dashes and underscores",
        "sweep.bad[3] (line 8): 'train..steps': expected a key of the recipe such as train.steps",
    ]
    for name, says in [("twice", "the name a twice"), ("one", "a list of 2 to 100")]:
        with pytest.raises(RecipeError, match=says):
            variants(parse(TEXT), name, origin="x.yaml")
    with pytest.raises(UsageError, match=r"x\.yaml has no such list of changes \(did you mean length\?\)"):
        variants(parse(TEXT), "lenght", origin="x.yaml")
    with pytest.raises(UsageError, match="has no such list"):
        variants(parse("task: clm\nsweep: [1]"), "length", origin="x.yaml")


@pytest.mark.parametrize(
    ("key", "path"),
    [("classes.très", ["classes", "très"]), ("a[1].b٣", ["a", 1, "b٣"]), ("a.0-9", None), ("a[٣]", None)],
)
def test_a_key_may_have_letters_of_any_language_and_an_index_only_digits(
    key: str, path: list[str | int] | None
) -> None:
    if path is None:
        with pytest.raises(UsageError, match=r"expected key\.path=value"):
            split(f"{key}=1")
    else:
        assert split(f"{key}=1")[0] == path
