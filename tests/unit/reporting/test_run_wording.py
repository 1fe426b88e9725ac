"""What people read of options, and of what caches were made of."""

from __future__ import annotations

import pytest
import yaml

from stlm_kd.recipe import format, load
from stlm_kd.recipe.describe import describe
from stlm_kd.reporting.cache_contents import made_of_rows

HASH, OTHER = "0123456789ab" + "c" * 52, "ba9876543210" + "d" * 52


@pytest.mark.parametrize(
    "value", [{0: (0, 1), 1: 2}, {"news": {"a": 0.5, "b": True}}, {"layers": ["x", None]}]
)
def test_a_mapping_is_told_as_a_recipe_writes_it(value: dict[object, object]) -> None:
    read = yaml.safe_load(format.value_words(value))
    assert read == yaml.safe_load(yaml.safe_dump(value).replace("!!python/tuple", ""))


@pytest.mark.parametrize("name", ["sample-two-teachers", "diito", "few-shot-sst2", "sample-sentiment"])
def test_a_plan_holds_no_spelling_of_pythons(name: str) -> None:
    words = describe(load(name)).replace("(", " ").replace(")", " ").replace(",", " ").split()
    assert not {"None", "True", "False"} & set(words)
    assert not [word for word in words if "'" in word and word != "student's"]


def test_what_a_cache_is_made_of_is_told_without_what_played_no_part() -> None:
    text = {"text": [0.2, HASH, OTHER], "seed": None, "states": [], "top": 16}
    assert list(made_of_rows(text)) == [
        ("the training data and its share", "20.00% of 0123456789ab… and ba9876543210…"),
        ("the number of top-k tokens", "16"),
    ]
    merged = {"teacher": {"merged": [HASH, OTHER], "how": "weighted", "options": {"weights": {"0": 1.0}}}}
    told = "0123456789ab… and ba9876543210… merged by weighted (weights {0: 1})"
    assert list(made_of_rows(merged)) == [("the teacher", told)]
    examples = {"text": [1.0, [["no", "yes"], "classification", HASH]]}
    assert list(made_of_rows(examples)) == [("the training data and its share", "100.00% of 0123456789ab…")]
