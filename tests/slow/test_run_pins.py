"""Whole runs whose teacher, tokenizer and data set are on a Hub on the loopback interface, in processes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.reporting.run_page.page import report
from tests.support.hub import Hub
from tests.support.hub_world import World
from tests.support.road import LLAMA, model_folder

RECIPE = f"""
task: clm
student: {{tokenizer: org/words, architecture: {LLAMA}}}
teachers: [{{name: a, model: org/teacher@v1}}]
data: {{train: {{hub: org/tales, split: train}}, validation: {{hub: org/tales, split: test}}, context: 64}}
objectives: [{{loss: labels}}, {{loss: reverse_kl}}]
train: {{steps: 2, effective_batch: 4, learning_rate: 5e-3}}
tracking: []
"""
COMMAND = "from stlm_kd.cli.main import app; app()"
LICENCE = {"README.md": "---\nlicense: mit\n---\n"}
REPOSITORIES = {"org/teacher": "model", "org/words": "model", "org/tales": "dataset"}


def files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def tales(size: int) -> dict[str, str]:
    texts = {part: sample_documents(part, size=size, seed=0) for part in ("train", "validation")}
    rows = {part: "".join(json.dumps({"text": text}) + "\n" for text in some) for part, some in texts.items()}
    return {"train.jsonl": rows["train"], "test.jsonl": rows["validation"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a teacher and a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = train_tokenizer(sample_documents("train", size=40_000, seed=0), size=300)
    tokenizer.save_pretrained(folder / "words")
    for version in (1, 2):
        model_folder(folder / f"teacher-{version}", "llama", tokenizer, seed=version)
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Iterator[World]:
    with Hub() as hub:
        hub.add("model", "org/teacher", files(made / "teacher-1") | LICENCE, tag="v1")
        hub.add("model", "org/words", files(made / "words"))
        hub.add("dataset", "org/tales", tales(20_000))
        wrong = {"model.safetensors": files(made / "teacher-2")["model.safetensors"]}
        title = ("Adding `safetensors` variant of this model", "SFconvertbot")
        hub.add("model", "org/teacher", wrong, branch="refs/pr/1", pull_request=title)
        (tmp_path / "mine.yaml").write_text(RECIPE, encoding="utf-8")
        yield World(hub, tmp_path)


def move(world: World, made: Path) -> None:
    """All names mean other commits from now on."""
    world.hub.add("model", "org/teacher", files(made / "teacher-2"), tag="v1")
    world.hub.add("model", "org/words", {"README.md": "moved"})
    world.hub.add("dataset", "org/tales", tales(22_000))


def distilled(world: World, *words: str, **variables: str) -> tuple[str, dict[str, Any]]:
    """A hash of the student's weights, and the record."""
    world.python(COMMAND, "distill", "-r", "mine.yaml", "--no-rehearsal", "--json", *words, **variables)
    (run,) = (world.home / "runs").glob("mine-*")
    weights = (run / "students/student/seed-1/model/model.safetensors").read_bytes()
    return sha256(weights).hexdigest(), json.loads((run / "run.json").read_text())


def asked(world: World, commits: dict[str, str]) -> dict[str, int]:
    """The number of requests on what each name means; those by its commit can mean nothing else."""
    return {
        name: sum(f"s/{name}" in line and commits[name] not in line for line in world.requests)
        for name in commits
    }


@pytest.mark.long
def test_a_run_keeps_its_commits_and_says_so_until_it_is_told_to_follow(
    world: World, made: Path, tmp_path: Path
) -> None:
    weights, record = distilled(world)
    assert not [line for line in world.requests if "pr/1" in line or "discussions" in line]
    pins = {one["id"]: one for one in record["pins"]}
    commits = {name: world.hub.repos[kind, name].branches["main"] for name, kind in REPOSITORIES.items()}
    assert {name: one["commit"] for name, one in pins.items()} == commits
    assert asked(world, commits) == {"org/teacher": 1, "org/words": 1, "org/tales": 1}
    assert (pins["org/teacher"]["asked"], pins["org/teacher"]["licence"]) == ("v1", "mit")

    (run,) = (world.home / "runs").glob("mine-*")
    assert json.loads((run / "results.json").read_text())["pins"] == record["pins"]
    report([run], target=tmp_path / "report.html")
    card = (run / "students/student/seed-1/model/README.md").read_text()
    for text in (card, (tmp_path / "report.html").read_text()):
        assert all(f"{commit}" in text for commit in commits.values()) and "mit" in text
    assert "base_model:\n- org/teacher\n" in card and "datasets:\n- org/tales\n" in card

    move(world, made)
    began = time.monotonic()
    assert distilled(world)[0] == weights
    usual = time.monotonic() - began
    moved = [line for line in world.stderr.splitlines() if "has moved on" in line]
    assert len(moved) == 3 and all("is used, as before: --update follows" in line for line in moved)

    began = time.monotonic()
    again, dead = distilled(world, HF_ENDPOINT="http://127.0.0.1:9")
    assert again == weights and dead["pins"] == record["pins"]
    assert time.monotonic() - began < 3 * usual + 5, "one attempt, not one for each file"
    told = [line for line in world.stderr.splitlines() if "127.0.0.1:9" in line]
    assert len(told) == 1 and "cannot be reached" in told[0]

    other, followed = distilled(world, "--update")
    assert other != weights and "and is followed" in world.stderr
    assert {one["commit"] for one in followed["pins"]}.isdisjoint(commits.values())


@pytest.mark.long
def test_what_moves_during_a_run_changes_nothing_in_it_nor_in_its_workers(world: World, made: Path) -> None:
    expected = world.hub.repos["model", "org/teacher"].tags["v1"]
    done = threading.Event()

    def move_once_asked() -> None:
        while not done.is_set() and not any("/api/models/org/teacher" in line for line in world.hub.requests):
            time.sleep(0.002)
        world.hub.add("model", "org/teacher", files(made / "teacher-2"), tag="v1")

    thread = threading.Thread(target=move_once_asked)
    thread.start()
    try:
        _, record = distilled(world, "--jobs", "2", "seeds=[1,2]")
    finally:
        done.set()
        thread.join()
    assert [one["commit"] for one in record["pins"] if one["id"] == "org/teacher"] == [expected]
    cache = world.home / "hf/hub/models--org--teacher/snapshots"
    (commit,) = [path.name for path in cache.iterdir()]
    assert commit == expected
    original = (made / "teacher-1/model.safetensors").read_bytes()
    assert (cache / commit / "model.safetensors").read_bytes() == original
    assert asked(world, {"org/teacher": commit})["org/teacher"] == 1, "the workers have the pins"


@pytest.mark.long
def test_the_processes_of_an_adaptation_ask_once(world: World, made: Path) -> None:
    """Beside the command that starts them, which reads the model's task."""
    for part, size in (("train", 20_000), ("validation", 5_000)):
        text = "\n\n".join(sample_documents(part, size=size, seed=0))
        (world.home / f"{part}.txt").write_text(text, encoding="utf-8")
    words = [
        "org/teacher@v1",
        "--tokenizer",
        "org/words",
        "--data",
        "train.txt",
        "--validation",
        "validation.txt",
    ]
    changes = ["teachers[0].adapt.tokens=2k", "data.context=64", "--no-rehearsal", "--json"]
    world.python(COMMAND, "adapt-teacher", *words, *changes, "--processes", "2")
    commit = world.hub.repos["model", "org/teacher"].tags["v1"]
    assert asked(world, {"org/teacher": commit})["org/teacher"] == 2


@pytest.mark.long
def test_processes_keep_to_a_lock_together(world: World, made: Path) -> None:
    world.python(COMMAND, "recipe", "lock", "mine.yaml", "--json")
    commits = {name: world.hub.repos[kind, name].branches["main"] for name, kind in REPOSITORIES.items()}
    move(world, made)
    _, record = distilled(world, "--locked", "--processes", "2")
    assert world.stderr.count(" is used, as locked") == 3
    assert {one["id"]: one["commit"] for one in record["pins"]} == commits
    assert asked(world, commits) == dict.fromkeys(commits, 1), "only the main process asks"
