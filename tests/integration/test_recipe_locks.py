"""``recipe lock`` on this machine's files: what it writes can be read, and what was there is minded."""

from __future__ import annotations

import shlex
import shutil
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

from stlm_kd import distill, lock_recipe, open_run
from stlm_kd.errors import DataError, RecipeError
from stlm_kd.pipeline.locks import lock_of
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import Lock, LockedModel, Made, drift, lock_yaml, read_lock
from stlm_kd.sharing.hub import ask
from stlm_kd.sharing.names import HubName
from tests.support.hub import Hub
from tests.support.hub_world import World
from tests.support.road import LLAMA, build, stlm_kd

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


@pytest.mark.parametrize(
    "names",
    [
        [f"{number}.txt" for number in range(101)],
        ["a\nb.txt"],
        ["back\\slash.txt"],
        [f"{'x' * 200}/" * 5 + "a.txt"],
    ],
)
def test_a_folder_of_many_files_or_of_odd_names_has_one_hash(names: list[str], here: Path) -> None:
    for name in (*names, "7.txt"):
        (here / "many" / name).parent.mkdir(parents=True, exist_ok=True)
        (here / "many" / name).write_text(f"Text {name}.")
    file, *_ = lock_recipe("mine.yaml")
    lock = read_lock(file.read_text())
    assert lock.data["train.0"].sha256 and not lock.data["train.0"].files
    assert not drift(lock, lock_of(load("mine.yaml")))
    (here / "many" / "7.txt").write_text("Another text.")
    assert [one.place for one in drift(lock, lock_of(load("mine.yaml")))] == ["data.train.0.sha256"]


def test_the_command_that_is_printed_reads_the_lock(here: Path) -> None:
    (here / "my own").mkdir()
    (here / "mine.yaml").rename("my own/a b.yaml")
    (here / "many").rename("my own/many")
    for options in ([], ["-o", "else where.lock"]):
        told = stlm_kd("recipe", "lock", "my own/a b.yaml", *options)
        command = told.stdout.splitlines()[-1].removeprefix("Use it: ")
        if options:
            Path("my own/recipe.lock").unlink()
        *before, words = command.split(" && ")
        for one in before:
            shutil.copyfile(*shlex.split(one)[1:])
        found = stlm_kd(*shlex.split(words)[1:], "--dry-run")
        assert found.exit_code == 0, (command, found.output)
    changed = stlm_kd("recipe", "validate", "--locked", "my own/a b.yaml", "train.steps=30")
    assert changed.exit_code == 3 and "leave out the changes" in changed.stderr
    named = stlm_kd("recipe", "diff", "my own/a b.yaml", "my own/recipe.lock")
    assert named.exit_code == 3
    assert named.stderr.splitlines()[1:] == ["  a lock, not a recipe; name the recipe that it lies beside"]


@pytest.mark.parametrize("text", ["format: 99\n", "no lock", "[", "\udcff"])
def test_a_lock_that_cannot_be_read_is_made_again_and_no_other_file_is_replaced(
    text: str, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = text.encode("utf-8", "surrogateescape")
    (here / "recipe.lock").write_bytes(content)
    (here / "notes.txt").write_bytes(content)
    file, moved, _ = lock_recipe("mine.yaml")
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


RUN = f"""task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
data: {{train: train.txt, validation: {{path: valid.txt, documents: line}}, context: 64}}
objectives: [{{loss: labels}}]
train: {{steps: 2, effective_batch: 8}}
eval: [perplexity]
tracking: []
"""


def test_a_run_whose_data_change_meanwhile_has_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RUN)
    steps = import_module("stlm_kd.pipeline.distill")

    def scored_after_a_change(*given: Any) -> Any:
        with Path("train.txt").open("a") as file:
            file.write("One more line.\n")
        return score_models(*given)

    with monkeypatch.context() as patch:
        score_models = steps.score_models
        patch.setattr(steps, "score_models", scored_after_a_change)
        with pytest.raises(DataError, match=r"changed while it was used \(data\.train\.0\.sha256: sha256:"):
            distill("mine.yaml", output_dir="runs", rehearsal=False)
    (run,) = Path("runs").glob("mine-*")
    assert open_run(run).record.status == "failed" and not (run / "recipe.lock").exists()
    again = distill("mine.yaml", output_dir="runs", rehearsal=False)
    lock = read_lock((again.path / "recipe.lock").read_text())
    assert lock.data["train.0"].sha256 == f"sha256:{sha256(Path('train.txt').read_bytes()).hexdigest()}"


COMMANDS = """
import json
from typer.testing import CliRunner
from stlm_kd.cli.main import app
told = []
for command in ("recipe validate", "distill --dry-run -r"):
    ended = CliRunner().invoke(app, [*command.split(), "hf://alice/tiny", "--locked"])
    told.append([ended.exit_code, ended.output])
print(json.dumps(told))
"""


def test_recipe_and_lock_of_an_address_are_of_one_commit(here: Path) -> None:
    text = RECIPE.replace("train: many", "train: {sample: train, size: 20k}")
    (here / "mine.yaml").write_text(text)
    lock_recipe("mine.yaml")
    with Hub() as hub:
        files = {"recipe.yaml": text, "recipe.lock": (here / "recipe.lock").read_text()}
        hub.add("model", "alice/tiny", files)
        world = World(hub, here)
        assert [code for code, _ in world.python(COMMANDS)] == [0, 0]
        asked = [line for line in world.requests if line.partition("?")[0] == "GET /api/models/alice/tiny"]
        assert len(asked) == 2, "once by each command"
