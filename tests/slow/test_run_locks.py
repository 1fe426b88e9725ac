"""Locks of whole runs: written, copied, kept to, and what is found to differ from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.recipe.lock import read_lock
from tests.slow.test_run_pins import LICENCE, RECIPE, REPOSITORIES, files, made, move, tales
from tests.support.hub import Hub
from tests.support.hub_world import World

__all__ = ["made"]

CODE = r"""
import json, os, re, shutil, urllib.error, urllib.parse, urllib.request
from pathlib import Path
from typer.testing import CliRunner
from stlm_kd.artifacts.hashing import sealed, unsealed
from stlm_kd.cli.main import app

told = {}
CACHE = "teacher", "cache", "-r", "mine.yaml", "--output-dir", "caches"

def mark(name):
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark/" + urllib.parse.quote(name))
    except urllib.error.HTTPError:
        pass

def run(name, *words):
    mark(name)
    ended = CliRunner().invoke(app, words)
    told[name] = [ended.exit_code, " ".join(ended.output.split())]

def distill(name, *words):
    run(name, "distill", "-r", "mine.yaml", "--no-rehearsal", *words)

def flip(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

def cold(name, *words):
    for folder in ("HF_HOME", "STLM_KD_CACHE"):
        shutil.rmtree(os.environ[folder], ignore_errors=True)
    distill(name, *words, "--output-dir", name)

distill("first")
(folder,) = Path("runs").glob("mine-*")
kept = [(folder / name).read_bytes() for name in ("recipe.lock", "results.json")]
distill("again")
told["same"] = kept == [(folder / name).read_bytes() for name in ("recipe.lock", "results.json")]
run("copied", "recipe", "lock", folder.name)
run("cache", *CACHE)
record = json.loads((folder / "run.json").read_text())
shutil.copytree(folder, "stopped")
Path("stopped/run.json").write_text(json.dumps(sealed(unsealed(record) | {"status": "interrupted"})))
run("unfinished", "recipe", "lock", "stopped")
with Path("stopped/recipe.lock").open("a") as file:
    file.write("# changed")
Path("stopped/run.json").write_text(json.dumps(record))
run("edited", "recipe", "lock", "stopped/recipe.yaml")

mark("move")
distill("locked", "--locked", "--output-dir", "locked")
distill("frozen", "--frozen", "--output-dir", "locked")
distill("both", "--locked", "--frozen")
distill("swept", "--locked", "--sweep", "train.steps=[1, 2]")
distill("changed", "--frozen", "train.steps=3")
run("validate", "recipe", "validate", "mine.yaml", "--locked")
run("of the run", "distill", "-r", str(folder), "--frozen", "--dry-run")
text = Path("recipe.lock").read_text()
stage = re.search("student.seed-1: '?([0-9a-f]{12})", text)[1]
Path("recipe.lock").write_text(text.replace(stage, "a" * 12))
distill("other stage", "--frozen")
Path("recipe.lock").write_text(re.sub("  student.tokenizer:\n(    .*\n)+", "", text))
distill("lacking", "--frozen")
os.remove("recipe.lock")
distill("missing", "--locked")
Path("recipe.lock").write_text(text)
for kind in ("models--org--teacher", "datasets--org--tales"):
    for blob in Path(os.environ["HF_HOME"], "hub", kind, "blobs").iterdir():
        flip(blob)
        distill(f"flipped {kind} {blob.name}", "--frozen", "--output-dir", "none")
        flip(blob)

run("cache moved", *CACHE)
run("cache update", *CACHE, "--update")

run("relock", "recipe", "lock", "mine.yaml")
mark("corrupt")
cold("corrupted", "--frozen")
mark("relist")
cold("relisted", "--locked")
mark("lose")
cold("lost", "--locked")
print(json.dumps(told))
"""


@dataclass(frozen=True)
class Told:
    """Exit code and output of each command, all requests, and the commits before and after the move."""

    home: Path
    commands: dict[str, Any]
    requests: list[str]
    heads: list[dict[str, str]]

    def asked(self, name: str) -> list[str]:
        """The requests of one command."""
        at = next(index for index, line in enumerate(self.requests) if f"/mark/{name} " in line)
        after = self.requests[at + 1 :]
        return after[: next(index for index, line in enumerate([*after, "/mark/"]) if "/mark/" in line)]


@pytest.fixture(scope="module")
def told(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    (home / "mine.yaml").write_text(RECIPE)
    with Hub() as hub:
        world = World(hub, home)
        hub.add("model", "org/teacher", files(made / "teacher-1") | LICENCE, tag="v1")
        hub.add("model", "org/words", files(made / "words"))
        hub.add("dataset", "org/tales", tales(20_000))
        heads = [_heads(hub)]

        def moved() -> None:
            move(world, made)
            heads.append(_heads(hub))

        def relisted() -> None:
            hub.faults[:] = [fault for fault in hub.faults if not fault.corrupt]
            teacher, commit = hub.repos["model", "org/teacher"], heads[-1]["org/teacher"]
            listed = teacher.commits[commit]
            weights = replace(listed.files["model.safetensors"], content=b"other")
            teacher.commits[commit] = replace(listed, files={**listed.files, "model.safetensors": weights})

        def lost() -> None:
            move(world, made)
            for name, kind in REPOSITORIES.items():
                hub.repos[kind, name].commits.pop(heads[-1][name])

        actions: dict[str, Callable[[], object]] = {"move": moved, "relist": relisted, "lose": lost}
        actions["corrupt"] = lambda: hub.fault("GET .*words/.*tokenizer.json", corrupt=True)
        for name, action in actions.items():
            hub.fault(f"/mark/{name}$", act=action, status=404)
        commands = world.python(CODE)
        return Told(home, commands, world.requests, heads)


def _heads(hub: Hub) -> dict[str, str]:
    return {name: hub.repos[kind, name].branches["main"] for name, kind in REPOSITORIES.items()}


def digest(file: Path) -> str:
    return f"sha256:{sha256(file.read_bytes()).hexdigest()}"


def test_a_finished_run_has_the_lock_of_what_it_used_and_made(told: Told, made: Path) -> None:
    assert told.commands["first"][0] == 0, told.commands["first"]
    (run,) = (told.home / "runs").glob("mine-*")
    lock = read_lock((run / "recipe.lock").read_text())
    models = {one.id: one.commit for one in lock.models.values()}
    assert models | {one.hub: one.commit for one in lock.data.values()} == told.heads[0]
    weights = "students/student/seed-1/model/model.safetensors"
    assert lock.outputs == {weights: digest(run / weights)}
    assert lock.results == digest(run / "results.json")
    original = digest(made / "teacher-1/model.safetensors")
    assert lock.models["teachers.a"].files["model.safetensors"] == original
    (stage,) = (told.home / "runs/stages").glob("model-*")
    assert stage.name == f"model-{lock.stages['student.seed-1']}"
    record = json.loads((run / "run.json").read_text())
    assert record["lock"] == digest(run / "recipe.lock") and record["status"] == "done"
    assert told.commands["again"][0] == 0 and told.commands["same"], "repeated: the same bytes"


def test_the_lock_of_a_finished_run_is_copied(told: Told) -> None:
    assert told.commands["copied"][0] == 0, told.commands["copied"]
    code, text = told.commands["unfinished"]
    assert code == 1 and "stopped: interrupted, so it has no lock; finish it with its command" in text
    code, text = told.commands["edited"]
    assert code == 1 and "changed since the run was done" in text


def test_names_that_moved_are_used_as_locked(told: Told) -> None:
    code, text = told.commands["locked"]
    assert code == 0 and text.count(" is used, as locked: stlm-kd recipe lock follows") == 3, text
    first, second = (
        digest(run / "students/student/seed-1/model/model.safetensors")
        for runs in ("runs", "locked")
        for run in (told.home / runs).glob("mine-*")
    )
    assert first == second
    code, text = told.commands["frozen"]
    assert code == 0 and "as locked" not in text, text
    assert not told.asked("frozen"), "a warm cache needs no request"
    assert told.commands["validate"][0] == told.commands["of the run"][0] == 0


def test_the_cache_of_a_teacher_keeps_its_commits_until_it_is_told_to_follow(told: Told) -> None:
    for name in ("cache", "cache moved", "cache update"):
        assert told.commands[name][0] == 0, told.commands[name]
    assert told.commands["cache moved"][1].count("is used, as before: --update follows") == 3
    assert told.commands["cache update"][1].count("and is followed") == 3


@pytest.mark.parametrize(
    ("name", "exit_code", "says"),
    [
        ("both", 2, "--locked, --frozen: each says which commits are used"),
        ("swept", 2, "a lock is of one recipe"),
        ("changed", 3, "recipe.lock of mine.yaml: 1 fault recipe: sha256:"),
        ("changed", 3, "leave out the changes, or write them to the recipe and lock it again"),
        ("other stage", 3, f"locked: {'a' * 12}"),
        ("lacking", 5, "student.tokenizer: org/words: not in recipe.lock of mine.yaml"),
        ("missing", 5, "mine.yaml: no recipe.lock beside it; make one: stlm-kd recipe lock mine.yaml"),
        ("corrupted", 5, "tokenizer.json is not the file that was published"),
        ("relisted", 3, "1 fault models.teachers.a.files.model.safetensors: sha256:"),
        ("lost", 5, "4 names or paths cannot be resolved"),
    ],
)
def test_what_is_not_as_locked_is_refused(told: Told, name: str, exit_code: int, says: str) -> None:
    code, text = told.commands[name]
    assert code == exit_code and says in text, text


def test_a_changed_byte_in_any_blob_is_found(told: Told) -> None:
    flipped = {name: one for name, one in told.commands.items() if name.startswith("flipped")}
    assert len(flipped) >= 5
    for name, (code, text) in flipped.items():
        assert code == 5 and "is not the file that was published" in text, (name, text)


def test_differences_and_losses_are_told_before_any_download(told: Told) -> None:
    assert told.commands["relock"][0] == 0, told.commands["relock"]
    assert sorted(line.partition("?")[0] for line in told.asked("relock")) == [
        "GET /api/datasets/org/tales",
        "GET /api/models/org/teacher/revision/v1",
        "GET /api/models/org/words",
    ], "one request a repository"
    for name in ("relisted", "lost"):
        assert told.asked(name) and not [line for line in told.asked(name) if "/resolve/" in line]
    text = told.commands["lost"][1]
    for place, name in (("teachers.a", "org/teacher"), ("validation.0", "org/tales")):
        commit = told.heads[1][name]
        assert f"{place}: lost, since it is not in the cache either: {name}@{commit}" in text
