"""Differences of recipes by meaning, and of their locks."""

from __future__ import annotations

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.publishing.diff import Change, difference
from stlm_kd.recipe import from_values, load, plain
from stlm_kd.recipe.lock import Lock, LockedModel, Made
from stlm_kd.recipe.yaml import Plain

TREES = st.dictionaries(
    st.sampled_from(["task", "data", "eval", "train", "teachers"]),
    st.recursive(
        st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
        ),
        max_leaves=6,
    ),
)


def resolved(*, steps: int = 5, fraction: float = 1.0, size: int = 512, **others: Plain) -> dict[str, Plain]:
    values: dict[str, Plain] = {
        "task": "clm",
        "student": {"preset": "stlm-47m", "tokenizer": {"train": "bpe", "size": size}},
        "data": {"train": "a.txt", "validation": "b.txt", "fraction": fraction},
        "objectives": [{"loss": "labels"}],
        "train": {"steps": steps},
        "eval": [{"suite": "perplexity"}],
    }
    return plain(from_values(values | others, origin="here"))


def test_each_change_is_a_line_in_its_group() -> None:
    changed = resolved(steps=7, fraction=0.5, size=300, eval=[{"suite": "perplexity", "window": 64}])
    assert difference(resolved(), changed).as_text().splitlines() == [
        "what is trained",
        "  student.tokenizer.size: 512 → 300",
        "on what",
        "  data.fraction: 1.0 → 0.5",
        "how",
        "  train.steps: 5 → 7",
        "scored by",
        "  eval[perplexity].window: not given → 64",
    ]


def test_what_does_not_print_is_escaped() -> None:
    change = Change("pins", "a\x9b.b", "x\x1b[2J", "\u202ey\n")
    assert str(change) == "a\\x9b.b: x\\x1b[2J \N{RIGHTWARDS ARROW} \\u202ey\\n"


def test_a_default_that_is_written_out_and_another_order_of_keys_are_no_difference() -> None:
    turned = dict(reversed(resolved(seeds=[1], tracking=["tensorboard"]).items()))
    found = difference(resolved(), turned)
    assert (found.changes, found.as_text()) == ((), "no difference")


def test_entries_of_lists_are_matched_by_name() -> None:
    base = plain(load("diito"))
    without = {**base, "objectives": base["objectives"][1:]}  # type: ignore[index]
    (removed,) = difference(base, without).changes
    assert (removed.place, removed.after) == ("objectives[labels]", None)
    turned = {**base, "objectives": base["objectives"][::-1]}  # type: ignore[index]
    (moved,) = difference(base, turned).changes
    assert moved.place == "objectives (order)"
    other = plain(load("diito", ["teachers[0].model=org/other"]))
    (changed,) = difference(base, other).changes
    assert str(changed) == "teachers[bert].model: bert-base-uncased → org/other"


def test_revisions_and_locks_are_pins() -> None:
    base = load("diito", ["data.train.revision=v1"])
    moved = load("diito", ["data.train.revision=v2"])
    first = Lock(
        f"sha256:{'a' * 64}", Made("x"), models={"teachers.bert": LockedModel("b", "main", "1" * 40)}
    )
    second = replace(first, models={"teachers.bert": LockedModel("b", "main", "2" * 40)}, seeds=(1,))
    found = difference(plain(base), plain(moved), (first, second))
    assert found.as_text().splitlines() == [
        "pins",
        "  data.train[0].revision: v1 → v2",
        f"  models.teachers.bert.commit: {'1' * 40} → {'2' * 40}",
        "  seeds: not given → 1",
    ]
    assert found.as_json()[0] == {
        "group": "pins", "place": "data.train[0].revision", "before": "v1", "after": "v2"
    }  # fmt: skip
    assert difference(plain(base), plain(moved), (first, None)).changes == found.changes[:1]


@given(TREES, TREES)
def test_a_difference_is_empty_for_equals_alone_and_turns_round(
    a: dict[str, Plain], b: dict[str, Plain]
) -> None:
    forth, back = difference(a, b).changes, difference(b, a).changes
    assert (not forth) == (json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True))
    assert {(one.place, repr(one.before)) for one in forth} == {(one.place, repr(one.after)) for one in back}


def test_values_from_elsewhere_cannot_steer_a_terminal() -> None:
    base = plain(load("diito"))
    (change,) = difference(base, {**base, "task": "a\x1b[2J\u202e\n±"}).changes
    assert str(change).endswith(r"a\x1b[2J\u202e\n±") and str(change).isprintable()


def test_recipes_of_different_kinds_can_be_compared() -> None:
    groups = {change.group for change in difference(resolved(), plain(load("few-shot-cola"))).changes}
    assert groups == {"what is trained", "on what", "how", "scored by"}
