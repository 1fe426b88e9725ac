"""``extends``: trees laid over one another, with lines and origins kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import RecipeError
from stlm_kd.recipe.extends import MAX_DEPTH, extended, merged
from stlm_kd.recipe.yaml import Node, Plain, parse

TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def node(value: Plain, origin: str = "") -> Node:
    if isinstance(value, dict):
        return Node({key: node(one, origin) for key, one in value.items()}, 1, origin)
    return Node([node(one, origin) for one in value] if isinstance(value, list) else value, 1, origin)


def merge_patch(base: Plain, patch: Plain) -> Plain:
    """RFC 7386, of values without null."""
    if not isinstance(patch, dict):
        return patch
    start = base if isinstance(base, dict) else {}
    return {**start, **{key: merge_patch(start.get(key), value) for key, value in patch.items()}}


def origins(found: Node) -> list[tuple[Plain, str]]:
    """Each single value with its origin."""
    inner = found.value.values() if isinstance(found.value, dict) else found.value
    if isinstance(found.value, (dict, list)):
        return [pair for one in inner for pair in origins(one)]  # type: ignore[union-attr]
    return [(found.value, found.origin)]


@given(MAPPINGS, MAPPINGS)
def test_a_merge_is_a_merge_patch_and_keeps_the_origin_of_each_value(
    base: dict[str, Plain], own: dict[str, Plain]
) -> None:
    before, after = node(base, "base"), node(own, "own")
    found = merged(before, after)
    assert found.plain() == merge_patch(base, own)
    assert (before.plain(), after.plain()) == (base, own)
    assert set(origins(found)) <= {*origins(before), *origins(after)} and set(origins(after)) <= set(
        origins(found)
    )


@given(MAPPINGS)
def test_a_tree_over_itself_over_nothing_and_under_nothing_is_that_tree(values: dict[str, Plain]) -> None:
    one, none = node(values), node({})
    assert merged(one, one).plain() == merged(none, one).plain() == merged(one, none).plain() == values


FILES = {
    "top.yaml": "task: clm\ntrain: {steps: 10, clip: 1}\nseeds: [1, 2]\neval: [perplexity]\n",
    "mid.yaml": "extends: top.yaml\ntrain: {steps: 20}\nseeds: [3]\n",
    "circle.yaml": "extends: round.yaml\n",
    "round.yaml": "extends: circle.yaml\n",
    "list.yaml": "- 1\n",
    **{f"deep{i}.yaml": f"extends: deep{i + 1}.yaml\n" for i in range(20)},
}


def read(name: str, _: str) -> tuple[Node, str]:
    return parse(FILES[name], origin=name), name


def test_a_chain_is_merged_from_its_far_end_and_null_removes() -> None:
    own = parse("extends: mid.yaml\ntrain: {clip: null, warmup: null}\neval: null\nengine: {x: 1}\n")
    found = extended(own, "own.yaml", read)
    assert found.plain() == {
        "task": "clm", "train": {"steps": 20, "warmup": None}, "seeds": [3], "engine": {"x": 1}
    }  # fmt: skip
    assert isinstance(found.value, dict) and isinstance(found.value["train"].value, dict)
    steps = found.value["train"].value["steps"]
    assert (found.value["task"].origin, steps.origin, steps.line) == ("top.yaml", "mid.yaml", 2)
    assert found.value["engine"].origin == ""
    assert own.plain()["extends"] == "mid.yaml"  # type: ignore[index,call-overload]


def test_a_recipe_that_extends_nothing_is_returned_as_it_is() -> None:
    root = parse("task: clm")
    assert extended(root, "own.yaml", read) is root


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "a: 1\nextends: circle.yaml",
            r"round\.yaml: 1 fault\n  extends \(line 1\): circle\.yaml extends itself",
        ),
        ("a: 1\nextends: own.yaml", r"recipe: 1 fault\n  extends \(line 2\): own\.yaml extends itself"),
        ("extends: deep0.yaml", f"one too many; expected at most {MAX_DEPTH}"),
        ("extends: [top.yaml, mid.yaml]", "expected one file, address or name"),
        ("extends: null", "expected one file"),
        ("extends: list.yaml", "not a mapping"),
    ],
)
def test_circles_long_chains_and_other_values_are_faults(text: str, says: str) -> None:
    files = {**FILES, "own.yaml": text}
    with pytest.raises(RecipeError, match=says):
        extended(parse(text), "own.yaml", lambda name, _: (parse(files[name], origin=name), name))
