"""Locks of whole runs: written, copied, kept to, and what is found to differ from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.recipe.lock import read_lock
from tests.slow.test_run_pins import REPOSITORIES, made, move, world
from tests.support.hub_world import World

__all__ = ["made", "world"]

RUNNER = """
import json, os, pathlib, re, shutil, sys, urllib.error, urllib.parse, urllib.request
from typer.testing import CliRunner
from stlm_kd.cli.main import app
told = {}
def run(name, *words):
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark/" + urllib.parse.quote(name))
    except urllib.error.HTTPError:
        pass
    ended = CliRunner().invoke(app, words)
    told[name] = [ended.exit_code, " ".join(ended.output.split())]
def distill(name, *words):
    run(name, "distill", "-r", "mine.yaml", "--no-rehearsal", *words)
def flipped(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
exec(sys.argv[1])
print(json.dumps(told))
"""

FIRST = """
distill("first")
(folder,) = pathlib.Path("runs").glob("mine-*")
kept = [(folder / name).read_bytes() for name in ("recipe.lock", "results.json")]
distill("again")
told["same"] = kept == [(folder / name).read_bytes() for name in ("recipe.lock", "results.json")]
run("copied", "recipe", "lock", folder.name)
record = json.loads((folder / "run.json").read_text())
shutil.copytree(folder, "stopped")
pathlib.Path("stopped/run.json").write_text(json.dumps(record | {"status": "interrupted"}))
run("unfinished", "recipe", "lock", "stopped")
"""

WARM = """
distill("locked", "--locked", "--output-dir", "locked")
distill("frozen", "--frozen", "--output-dir", "locked")
distill("both", "--locked", "--frozen")
distill("swept", "--locked", "--sweep", "train.steps=[1, 2]")
distill("changed", "--frozen", "train.steps=3")
run("validate", "recipe", "validate", "mine.yaml", "--locked")
run("of the run", "distill", "-r", "runs/" + os.listdir("runs")[0] + "/recipe.yaml", "--frozen", "--dry-run")
text = pathlib.Path("recipe.lock").read_text()
stage = re.search("student.seed-1: '?([0-9a-f]{12})", text)[1]
pathlib.Path("recipe.lock").write_text(text.replace(stage, "a" * 12).replace("torch: ", "torch: 1"))
distill("other stage", "--frozen")
pathlib.Path("recipe.lock").write_text(re.sub("  student.tokenizer:\\n(    .*\\n)+", "", text))
distill("lacking", "--frozen")
os.remove("recipe.lock")
distill("missing", "--locked")
pathlib.Path("recipe.lock").write_text(text)
hub = pathlib.Path(os.environ["HF_HOME"], "hub")
for kind in ("models--org--teacher", "datasets--org--tales"):
    for blob in (hub / kind / "blobs").iterdir():
        flipped(blob)
        distill(f"flipped {kind} {blob.name}", "--frozen")
        flipped(blob)
"""

COLD = """
distill("cold", sys.argv[2])
"""
REPOS = (("model", "teacher"), ("dataset", "tales"))


def steps(world: World, code: str, *words: str, **variables: str) -> dict[str, Any]:
    found: dict[str, Any] = world.python(RUNNER, code, *words, **variables)
    return found


def asked(world: World, name: str) -> list[str]:
    """The requests of one command."""
    at = next(index for index, line in enumerate(world.requests) if f"/mark/{name} " in line)
    after = world.requests[at + 1 :]
    end = next((index for index, line in enumerate(after) if "/mark/" in line), len(after))
    return after[:end]


def digest(file: Path) -> str:
    return f"sha256:{sha256(file.read_bytes()).hexdigest()}"


def test_a_run_writes_its_lock_and_others_keep_to_it(world: World, made: Path) -> None:
    told = steps(world, FIRST)
    assert told["first"][0] == 0, told["first"]
    (run,) = (world.home / "runs").glob("mine-*")
    lock = read_lock((run / "recipe.lock").read_text())
    heads = {name: world.hub.repos[kind, name].branches["main"] for name, kind in REPOSITORIES.items()}
    assert {one.id: one.commit for one in lock.models.values()} | {
        one.hub: one.commit for one in lock.data.values()
    } == heads
    weights = run / "students/student/seed-1/model/model.safetensors"
    assert lock.outputs == {weights.relative_to(run).as_posix(): digest(weights)}
    assert lock.results == digest(run / "results.json")
    assert lock.models["teachers.a"].files["model.safetensors"] == digest(
        made / "teacher-1/model.safetensors"
    )
    stage = json.loads((run / "students/student/seed-1/stage.json").read_text())
    stages = [path.name for path in (world.home / "runs/stages").glob("model-*")]
    assert stage["kind"] == "model" and stages == [f"model-{lock.stages['student.seed-1']}"]
    record = json.loads((run / "run.json").read_text())
    assert record["lock"] == digest(run / "recipe.lock") and record["status"] == "done"

    assert told["again"][0] == 0 and told["same"], "a repeated run writes the same results and lock"
    assert told["copied"][0] == 0, told["copied"]
    assert (world.home / "recipe.lock").read_bytes() == (run / "recipe.lock").read_bytes()
    assert told["unfinished"][0] == 1 and "interrupted, so it has no lock" in told["unfinished"][1]

    move(world, made)
    told = steps(world, WARM)
    code, text = told["locked"]
    assert code == 0, text
    (other,) = (world.home / "locked").glob("mine-*")
    assert digest(other / weights.relative_to(run)) == digest(weights)
    assert text.count(" is used, as locked: stlm-kd recipe lock follows") == 3
    assert told["frozen"][0] == 0 and "as locked" not in told["frozen"][1], told["frozen"]
    assert not asked(world, "frozen"), "a warm cache needs no request"
    assert told["both"][0] == 2 and "--locked, --frozen: each says which commits" in told["both"][1]
    assert told["swept"][0] == 2 and "a lock is of one recipe" in told["swept"][1]
    code, text = told["changed"]
    assert code == 3 and "recipe.lock of mine.yaml: 1 fault" in text and " recipe: sha256:" in text
    assert told["validate"][0] == 0, told["validate"]
    assert told["of the run"][0] == 0, told["of the run"]
    code, text = told["other stage"]
    assert code == 3 and "stages.student.seed-1: " in text and f"locked: {'a' * 12}" in text
    code, text = told["lacking"]
    assert code == 5 and "student.tokenizer: org/words: not in recipe.lock of mine.yaml" in text
    assert told["missing"][0] == 5 and "no recipe.lock beside it" in told["missing"][1]
    flipped = {name: one for name, one in told.items() if name.startswith("flipped")}
    assert len(flipped) >= 5
    for name, (code, text) in flipped.items():
        assert code == 5 and "is not the file that was published" in text, (name, text)


@pytest.fixture
def locked(world: World) -> Iterator[World]:
    """A world with a lock that was made without a download."""
    told = steps(world, 'run("lock", "recipe", "lock", "mine.yaml")')
    assert told["lock"][0] == 0, told
    assert [line.split("?")[0] for line in world.requests if "/mark/" not in line] == [
        "GET /api/models/org/teacher/revision/v1",
        "GET /api/models/org/words",
        "GET /api/datasets/org/tales",
    ], "one request a repository, and no download"
    yield world


def test_other_bytes_and_lost_commits_are_found_before_anything_is_trained(locked: World, made: Path) -> None:
    locked.hub.fault("GET .*words/.*tokenizer.json", corrupt=True)
    (code, text) = steps(locked, COLD, "--frozen")["cold"]
    assert code == 5 and "tokenizer.json is not the file that was published" in text, text
    locked.hub.faults.clear()

    elsewhere = World(locked.hub, locked.home / "elsewhere")
    elsewhere.home.mkdir()
    for name in ("mine.yaml", "recipe.lock"):
        shutil.copy(locked.home / name, elsewhere.home)
    teacher, tales = (locked.hub.repos[kind, f"org/{name}"] for kind, name in REPOS)
    commit, first = teacher.branches["main"], tales.branches["main"]
    listed = teacher.commits[commit]
    weights = replace(listed.files["model.safetensors"], content=b"other")
    teacher.commits[commit] = replace(listed, files={**listed.files, "model.safetensors": weights})
    (code, text) = steps(elsewhere, COLD, "--locked")["cold"]
    assert code == 3 and "models.teachers.a.files.model.safetensors: sha256:" in text, text
    assert not [line for line in elsewhere.requests if "/resolve/" in line], "told before any download"

    move(locked, made)
    del teacher.commits[commit], tales.commits[first]
    (code, text) = steps(elsewhere, COLD, "--locked")["cold"]
    assert code == 5 and "3 names or paths cannot be resolved" in text, text
    assert f"teachers.a: lost, since it is not in the cache either: org/teacher@{commit}" in text
    assert f"validation.0: lost, since it is not in the cache either: org/tales@{first}" in text
    assert not [line for line in elsewhere.requests if "/resolve/" in line]
