"""Locks of recipes that name nothing on the Hub: odd folders, changed files, and locks that are replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.errors import RecipeError
from stlm_kd.pipeline.locks import Read, _as_read, lock_of
from stlm_kd.publishing.locking import lock_recipe
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.locate import find, lock_beside
from stlm_kd.recipe.lock import drift, lock_yaml, read_lock

RECIPE = """task: clm
student: {preset: stlm-47m, tokenizer: {train: bpe, size: 300}}
data: {train: {path: texts}, validation: {path: held-out.txt}}
objectives: [{loss: labels}]
train: {steps: 1}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    for name in ("texts/a.txt", "texts/b.txt", "held-out.txt"):
        Path(name).write_text(name)
    Path("recipe.yaml").write_text(RECIPE)
    return load("recipe.yaml")


@pytest.mark.parametrize("names", [["a\nb.txt"], ["back\\slash.txt"], [f"{i}.txt" for i in range(1200)]])
def test_an_odd_or_large_folder_is_locked_by_one_hash(names: list[str], recipe: Recipe) -> None:
    assert set(lock_of(recipe).data["train.0"].files) == {"a.txt", "b.txt"}
    for name in names:
        Path("texts", name).write_text("text")
    lock = lock_of(recipe)
    assert lock.data["train.0"].sha256 is not None and not lock.data["train.0"].files
    assert read_lock(lock_yaml(lock)) == lock
    Path("texts", names[-1]).write_text("other")
    assert [one.place for one in drift(lock, lock_of(recipe))] == ["data.train.0.sha256"]


def test_a_file_that_changed_during_the_run_is_locked_as_it_was_and_named(
    recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    before, read = lock_of(recipe), Read.of(recipe)
    assert _as_read(before, read) == before and "changed" not in caplog.text
    Path("held-out.txt").write_text("another")
    Path("texts/b.txt").write_text("another")
    assert _as_read(lock_of(recipe), read) == before
    told = caplog.text
    assert "held-out.txt (data.validation.0.sha256): changed while the run used it" in told
    assert "texts (data.train.0.files.b.txt): changed while the run used it" in told


@pytest.mark.parametrize(
    "text", ["format: 2\nrecipe: x\n", "format: 1\nrecipe: x\n", "recipe: x\nmade: {by: x}\n"]
)
def test_a_lock_that_cannot_be_read_is_replaced_with_a_note(
    text: str, recipe: Recipe, caplog: pytest.LogCaptureFixture
) -> None:
    Path("recipe.lock").write_text(text)
    with pytest.raises(RecipeError, match=r"recipe\.lock: "):
        lock_beside(find("recipe.yaml"))
    assert lock_recipe("recipe.yaml") == (Path("recipe.lock"), [])
    assert "recipe.lock: replaced; as it was, this version cannot read it" in caplog.text
    assert lock_beside(find("recipe.yaml")) == lock_of(recipe)


@pytest.mark.parametrize("text", [RECIPE, "a: [", "text"])
def test_a_file_that_is_no_lock_is_kept(text: str, recipe: Recipe) -> None:
    Path("mine").write_text(text)
    with pytest.raises(RecipeError, match="mine: "):
        lock_recipe("recipe.yaml", "mine")
    assert Path("mine").read_text() == text


def test_what_counterfactuals_read_beside_the_text_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    from stlm_kd.interventions import sources
    from stlm_kd.pipeline.locks import _data
    from stlm_kd.recipe.lock import LockedData

    def words(source: str) -> dict[str, LockedData]:
        found = dict(_data(load("few-shot-qnli", [f"objectives[3].source={source}"])))
        return {place: find() for place, find in found.items() if "objectives" in place}

    monkeypatch.setattr(sources, "wordnet_identity", lambda: "1" * 64)
    assert words("mixup") == {}
    (first,) = words("synonym").items()
    monkeypatch.setattr(sources, "wordnet_identity", lambda: "2" * 64)
    (second,) = words("synonym").items()
    assert first[0] == second[0] == "objectives.synonym"
    assert first[1].name == second[1].name == "wordnet" and first[1].sha256 != second[1].sha256
