"""``recipe lock`` on this machine's files: what it writes can be read, and what was there is minded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from stlm_kd import lock_recipe
from stlm_kd.errors import RecipeError
from stlm_kd.pipeline.locks import lock_of
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import Lock, LockedModel, Made, drift, lock_yaml, read_lock
from stlm_kd.sharing.hub import ask
from stlm_kd.sharing.names import HubName

RECIPE = """task: clm
student: {preset: stlm-nano, tokenizer: {train: bpe, size: 300}}
data: {train: many, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}]
train: {steps: 10}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "many").mkdir()
    (tmp_path / "mine.yaml").write_text(RECIPE)
    (tmp_path / "many" / "0.txt").write_text("One.")
    return tmp_path


def test_a_folder_of_many_files_has_one_hash(here: Path) -> None:
    for number in range(1001):
        (here / "many" / f"{number}.txt").write_text(f"Text {number}.")
    file, _ = lock_recipe("mine.yaml")
    lock = read_lock(file.read_text())
    assert lock.data["train.0"].sha256 and not lock.data["train.0"].files
    assert not drift(lock, lock_of(load("mine.yaml")))
    (here / "many" / "7.txt").write_text("Another text.")
    assert [one.place for one in drift(lock, lock_of(load("mine.yaml")))] == ["data.train.0.sha256"]


@pytest.mark.parametrize("text", ["format: 99\n", "no lock", "[", "\udcff"])
def test_a_lock_that_cannot_be_read_is_made_again_and_no_other_file_is_replaced(
    text: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = text.encode("utf-8", "surrogateescape")
    (here / "recipe.lock").write_bytes(content)
    (here / "notes.txt").write_bytes(content)
    file, moved = lock_recipe("mine.yaml")
    assert read_lock(file.read_text()).seeds == load("mine.yaml").seeds and moved == []
    assert "cannot be read" in caplog.text and "is replaced" in caplog.text
    with pytest.raises(RecipeError):
        lock_recipe("mine.yaml", "notes.txt")
    assert (here / "notes.txt").read_bytes() == content


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ("mit", "mit"),
        (["mit", "apache-2.0"], "mit, apache-2.0"),
        ("", None),
        ([], None),
        ("\n", None),
        ("m\x1b[31mit\u202e", "m[31mit"),
        ({"name": 1}, "{'name': 1}"),
        ("x" * 5000, "x" * 200),
    ],
)
def test_whatever_a_card_states_as_licence_can_be_locked(
    stated: Any, licence: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STLM_KD_CACHE", str(tmp_path))
    answer = SimpleNamespace(
        id="org/x", sha="1" * 40, gated=False, siblings=[], card_data={"license": stated}
    )
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: answer)
    found = ask(HubName("model", "org/x"))
    assert found.licence == licence
    lock = lock_of_model(LockedModel(found.id, commit=found.commit, license=found.licence))
    assert read_lock(lock).models["a"].license == licence


def lock_of_model(model: LockedModel) -> str:
    return lock_yaml(Lock(recipe=f"sha256:{'0' * 64}", made=Made("x"), models={"a": model}))
