"""The lock: written so that it reads back, compared with facts, and refused where it is not one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import RecipeError
from stlm_kd.recipe.lock import (
    Lock,
    LockedData,
    LockedModel,
    LockedSuite,
    Made,
    drift,
    lock_yaml,
    read_lock,
    readable,
)

HASH, OTHER, ONE, TWO = "sha256:" + "a" * 64, "sha256:" + "b" * 64, "1" * 40, "2" * 40
LOCK = Lock(
    recipe=HASH,
    made=Made("stlm-kd 0.2.0", "git:cfd2c21", "2026-11-30"),
    models={
        "teachers.t": LockedModel("org/t", "main", ONE, license="mit", files={"config.json": f"git:{ONE}"}),
        "student.tokenizer": LockedModel(identity="1db407d8"),
    },
    data={
        "train.0": LockedData(hub="org/d", split="train", commit=ONE, bytes=10),
        "validation.0": LockedData(path="held-out.txt", sha256=HASH),
    },
    eval={"lm-eval:blimp": LockedSuite("1.0", "lm-eval 0.4.13", {"nyu-mll/blimp": ONE})},
    seeds=(1, 2),
    teacher_precision="bf16",
    packages={"torch": "2.13.0"},
    environment={"python": "3.11.7"},
    stages={"student.1": "51b651129114"},
    outputs={"student.1/model.safetensors": HASH},
    results=HASH,
)
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20)
IDS = st.from_regex("([a-z0-9][a-z.-]{0,9}/)?[a-z0-9][a-z.-]{0,9}", fullmatch=True)
COMMITS = st.from_regex("[0-9a-f]{40}", fullmatch=True)
LOCKS = st.builds(
    Lock,
    recipe=st.just(HASH),
    made=st.builds(Made, TEXT),
    models=st.dictionaries(TEXT, st.builds(LockedModel, id=IDS, commit=COMMITS), max_size=3),
    packages=st.dictionaries(
        TEXT, TEXT | st.sampled_from(["1e5", "1.0", "null", "yes", "007", "0x1f"]), max_size=3
    ),
    seeds=st.lists(st.integers(0, 2**32 - 1), max_size=3).map(tuple),
    teacher_precision=st.sampled_from([None, "fp32", "bf16"]),
    stages=st.dictionaries(TEXT, st.from_regex("[0-9]{3}e[0-9]{8}|[0-9a-f]{12}", fullmatch=True), max_size=3),
)


@given(LOCKS)
def test_a_lock_reads_back_whatever_its_texts_look_like(lock: Lock) -> None:
    assert read_lock(lock_yaml(lock)) == lock
    assert drift(lock, lock) == []


ODD = st.text(max_size=20) | st.sampled_from(["\ud800", "\x85\u202e", "a\nb", "x" * 3000])
ODD_LOCKS = st.builds(
    Lock,
    recipe=st.just(HASH),
    made=st.just(Made("x")),
    models=st.dictionaries(ODD, st.builds(LockedModel, identity=ODD, license=ODD), max_size=3),
    data=st.dictionaries(ODD, st.builds(LockedData, path=ODD, name=ODD, split=ODD), max_size=3),
    eval=st.dictionaries(ODD, st.builds(LockedSuite, version=ODD, library=ODD), max_size=3),
    environment=st.dictionaries(ODD, ODD, max_size=3),
)


@given(ODD_LOCKS)
def test_odd_facts_are_written_so_that_the_lock_can_be_read(lock: Lock) -> None:
    assert read_lock(lock_yaml(readable(lock))) == readable(lock) == readable(readable(lock))


def test_a_lock_that_would_be_too_large_keeps_commits_and_drops_the_longest_lists() -> None:
    files = {f"{number:04}{'x' * 900}": HASH for number in range(1000)}
    many = {f"teachers.t{number}": LockedModel("org/t", commit=ONE, files=files) for number in range(3)}
    found = read_lock(lock_yaml(readable(replace(LOCK, models=LOCK.models | many))))
    assert found.models["teachers.t"] == LOCK.models["teachers.t"]
    assert [len(found.models[place].files) for place in many] == [1000, 1000, 0]
    assert all(found.models[place].commit == ONE for place in many)


def test_a_lock_has_a_fact_a_line_in_a_fixed_order() -> None:
    text = lock_yaml(LOCK)
    assert read_lock(text) == LOCK
    turned = replace(LOCK, models=dict(reversed(LOCK.models.items())))
    assert lock_yaml(turned) == text
    assert [*yaml.safe_load(text)][:4] == ["format", "recipe", "made", "models"]
    changed = lock_yaml(
        replace(LOCK, data={**LOCK.data, "train.0": replace(LOCK.data["train.0"], commit=TWO)})
    )
    lines = [(a, b) for a, b in zip(text.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert lines == [(f"    commit: '{ONE}'", f"    commit: '{TWO}'")]


TEACHER, TRAIN, SUITE = LOCK.models["teachers.t"], LOCK.data["train.0"], LOCK.eval["lm-eval:blimp"]


def models(**given: LockedModel) -> dict[str, dict[str, LockedModel]]:
    return {"models": LOCK.models | {f"teachers.{name}": model for name, model in given.items()}}


@pytest.mark.parametrize(
    ("change", "places", "level"),
    [
        ({"recipe": OTHER}, ["recipe"], "content"),
        (models(t=replace(TEACHER, commit=TWO)), ["models.teachers.t.commit"], "content"),
        (models(u=TEACHER), ["models.teachers.u"], "content"),
        ({"models": {"teachers.t": TEACHER}}, ["models.student.tokenizer"], "content"),
        (models(t=replace(TEACHER, asked="v1")), ["models.teachers.t.asked"], "note"),
        (models(t=replace(TEACHER, license="gpl")), ["models.teachers.t.license"], "note"),
        (
            models(t=replace(TEACHER, files={"config.json": f"git:{TWO}", "other": HASH})),
            ["models.teachers.t.files.config.json"],
            "content",
        ),
        ({"data": LOCK.data | {"train.0": replace(TRAIN, commit=TWO)}}, ["data.train.0.commit"], "content"),
        (
            {"data": LOCK.data | {"validation.0": LockedData(sha256=OTHER)}},
            ["data.validation.0.sha256"],
            "content",
        ),
        ({"eval": {"lm-eval:blimp": replace(SUITE, library="0.5")}}, ["eval.lm-eval:blimp.library"], "code"),
        (
            {"eval": {"lm-eval:blimp": replace(SUITE, version="2.0")}},
            ["eval.lm-eval:blimp.version"],
            "content",
        ),
        (
            {"eval": {"lm-eval:blimp": replace(SUITE, data={"d": ONE})}},
            ["eval.lm-eval:blimp.data.d", "eval.lm-eval:blimp.data.nyu-mll/blimp"],
            "content",
        ),
        ({"seeds": (1, 3)}, ["seeds"], "content"),
        ({"teacher_precision": "fp32"}, ["teacher_precision"], "content"),
        ({"stages": {"student.1": "0" * 12}}, ["stages.student.1"], "code"),
        ({"packages": {"torch": "2.14.0"}}, ["packages.torch"], "code"),
        ({"environment": {"python": "3.12.0"}}, ["environment.python"], "note"),
        ({"made": Made("stlm-kd 0.3.0")}, ["made.by"], "note"),
        ({"outputs": {"student.1/model.safetensors": OTHER}}, [], ""),
        ({"models": {}}, [], ""),
        ({"data": LOCK.data | {"train.0": replace(TRAIN, bytes=None)}}, [], ""),
    ],
)
def test_each_change_of_the_facts_is_one_drift_with_its_place_and_level(
    change: dict[str, object], places: list[str], level: str
) -> None:
    found = drift(LOCK, replace(LOCK, **change))  # type: ignore[arg-type]
    assert [one.place for one in found] == places
    assert all(one.level == level for one in found)
    assert all(one.refuses == (level == "content" or "stages" in change) for one in found)


def test_a_lock_that_states_less_than_the_facts_does_not_pass() -> None:
    bare = Lock(recipe=HASH, made=LOCK.made)
    found = {one.place.partition(".")[0] for one in drift(bare, LOCK) if one.refuses}
    assert found == {"models", "data", "eval", "seeds", "stages"}
    assert str(drift(bare, LOCK)[0]).endswith("locked: not in the lock")
    no_commit = replace(LOCK, models={**LOCK.models, "teachers.t": LockedModel("org/t", "main")})
    assert "models.teachers.t.commit" in {one.place for one in drift(no_commit, LOCK)}


BASE = f"format: 1\nrecipe: {HASH}\nmade: {{by: x}}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format: 2\nanything: 1\n", "format: 2 found; this version reads format 1"),
        (f"recipe: {HASH}\n", "format: None found"),
        ("format: 1\n", "2 faults\n  recipe: is missing.*\n  made: is missing"),
        (BASE + "run: sh\n", "run: not a key of a lock"),
        (BASE + "s\u0435eds: [1]\n", r"s\\u0435eds: not a key of a lock"),
        (BASE + "seeds: [1, -1, x]\n", "2 faults\n  seeds.1: -1 found; .*\n  seeds.2: 'x' found; expected a"),
        (BASE + "seeds: ['1']\n", "expected a valid integer"),
        (BASE + "models: {a: {commit: abc}}\n", "models.a.commit: 'abc' found; expected to match"),
        (BASE + "models: {a: {id: a/../b}}\n", "models.a.id: 'a/../b' found; expected to match"),
        *(
            (BASE + f"{part}: {{a: {{asked: {path}}}}}\n", f"{part}.a.asked: .* found; expected to match")
            for part in ("models", "data")
            for path in ("/x", "../x", "a/../x", "-x", "'a b'", "''")
        ),
        *(
            (BASE + f"{part}: {{{path}: '{HASH}'}}\n", "found; expected a relative path without")
            for part in ("outputs", "published")
            for path in ("/x", "../x", "a/../x", "'a\\b'", "'c:x'", "a/./b", "'.'", "''")
        ),
        (BASE + f"data: {{a: {{files: {{../x.py: '{HASH}'}}}}}}\n", "found; expected a relative path"),
        (BASE + "results: md5:1\n", "results: 'md5:1' found"),
        *(
            (BASE + f"published: {{a: '{text}'}}\n", "published.a: .* found; expected the address of a model")
            for text in ("somewhere", "hf://a", "ftp://a/b", "git+https://h.org/a")
        ),
        (BASE.replace("by: x", 'by: "a\\e[2J"'), r"made.by: 'a\\x1b"),
        (BASE + "packages: {" + ", ".join(f"p{i}: x" for i in range(3)) + ", p0: y}\n", "given twice"),
        (BASE + "seeds: &a [1]\n", "anchors and aliases"),
        (BASE + "seeds: !!python/tuple [1]\n", "the tag"),
        ("[]", "expected an object"),
        ("a" * (2 * 1024**2 + 1), "expected at most 2,097,152"),
        ("a: " + "[" * 100, "nested more than"),
    ],
)  # fmt: skip
def test_what_is_no_lock_is_refused_with_all_its_faults(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read_lock(text, origin="recipe.lock")
    assert str(caught.value).startswith("recipe.lock: ")
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
