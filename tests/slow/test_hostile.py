"""Malicious recipes over HTTP: every one is refused in plain words, and nothing of it is executed or kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.support.hostile import FOLDER, corpus
from tests.support.hub import Hub
from tests.support.paths import ROOT

CORPUS = {f"mallory/r{number}": case for number, case in enumerate(corpus())}


def start(hub: Hub, home: Path) -> subprocess.Popen[str]:
    """A process that fetches into ``home/work/cache`` what it reads from its standard input."""
    (home / "work").mkdir(exist_ok=True)
    extra = {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.hostile"],
        cwd=home / "work",
        env=hub.environment(home, **extra),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        text=True,
    )


def fetched(hub: Hub, home: Path, *repos: str) -> dict[str, dict[str, Any]]:
    """What came of fetching each repository, in one process."""
    process = start(hub, home)
    output, errors = process.communicate(json.dumps(repos), timeout=120)
    assert process.returncode == 0, errors
    found: dict[str, dict[str, Any]] = json.loads(output)
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What came of fetching each folder of the corpus, and a good one."""
    with Hub() as hub:
        for repo, case in CORPUS.items():
            hub.add("model", repo, {**FOLDER, **case.files})
        hub.add("model", "alice/good", {**FOLDER, "model.pkl": b"x", "data/x.pkl": b"x", "a/evil.py": b"x"})
        return fetched(hub, tmp_path_factory.mktemp("home"), *CORPUS, "alice/good")


@pytest.mark.parametrize("repo", CORPUS, ids=[case.name for case in CORPUS.values()])
def test_a_malicious_recipe_is_refused_and_nothing_of_it_is_kept(
    told: dict[str, dict[str, Any]], repo: str
) -> None:
    case, found = CORPUS[repo], told[repo]
    assert (found["error"], found["code"]) == ("RecipeError", 3), found
    assert re.search(case.says, found["message"]), found["message"]
    assert all(line.isprintable() for line in found["message"].split("\n"))
    assert case.is_data or found["kept"] == []
    assert not any("unpickled" in path or "evil" in path for path in found["kept"])


def test_the_corpus_is_large_and_each_of_its_names_is_one_case() -> None:
    assert len({case.name for case in CORPUS.values()}) == len(CORPUS) > 100


def test_of_a_good_folder_only_the_allowed_files_are_kept(told: dict[str, dict[str, Any]]) -> None:
    found = told["alice/good"]
    assert found["error"] is None, found
    assert re.fullmatch(r"hf://alice/good@[0-9a-f]{40}", found["message"])
    assert {Path(path).name for path in found["kept"]} == {*map(os.path.basename, FOLDER), "manifest.json"}


def test_a_changed_byte_is_refused_and_the_fetch_after_its_removal_succeeds(tmp_path: Path) -> None:
    with Hub() as hub:
        hub.add("model", "alice/good", FOLDER)
        hub.fault("GET .*resolve.*train.txt", corrupt=True, times=1)
        changed = fetched(hub, tmp_path, "alice/good")["alice/good"]
        hub.fault("GET .*/tree/", status=403)
        damaged = re.search(r"delete (\S+) and run", changed["message"])
        assert damaged is not None
        Path(damaged[1]).unlink()
        again = fetched(hub, tmp_path, "alice/good")["alice/good"]
    assert (changed["error"], changed["code"], changed["kept"]) == ("MissingResourceError", 5, [])
    assert "data/train.txt" in changed["message"]
    assert again["error"] is None and len(again["kept"]) == len(FOLDER) + 1


def test_a_moved_tag_gives_another_folder_and_the_commit_the_same_one_without_a_request(
    tmp_path: Path,
) -> None:
    with Hub() as hub:
        first = hub.add("model", "alice/good", FOLDER, tag="v1")
        (before,) = fetched(hub, tmp_path, "alice/good@v1").values()
        second = hub.add("model", "alice/good", {"data/train.txt": b"Others.\n"}, tag="v1")
        (after,) = fetched(hub, tmp_path, "alice/good@v1").values()
        hub.requests.clear()
        (pinned,) = fetched(hub, tmp_path, f"alice/good@{first}").values()
        assert hub.requests == []
    assert before["message"] == pinned["message"] == f"hf://alice/good@{first}"
    assert after["message"] == f"hf://alice/good@{second}"
    assert len(after["kept"]) == len(FOLDER) + 1 and pinned["kept"] == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_an_interrupted_fetch_leaves_nothing_that_is_used(tmp_path: Path, stop: signal.Signals) -> None:
    with Hub() as hub:
        hub.add("model", "alice/good", FOLDER)
        hub.fault("GET .*resolve.*held-out.txt", wait=5)
        process = start(hub, tmp_path)
        assert process.stdin is not None
        process.stdin.write('["alice/good"]')
        process.stdin.close()
        process.stdin = None
        end = time.monotonic() + 60
        while not any("train.txt" in request for request in hub.requests) and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(stop)
        process.communicate(timeout=60)
        assert process.returncode != 0
        cache = tmp_path / "work" / "cache"
        left = {path.relative_to(cache).parts[0] for path in cache.rglob("*") if path.is_file()} - {".lock"}
        assert all(name.startswith(".") and name.endswith(".unfinished") for name in left)
        assert stop is signal.SIGKILL or not left
        hub.faults.clear()
        again = fetched(hub, tmp_path, "alice/good")["alice/good"]
    assert again["error"] is None and len(again["kept"]) == len(FOLDER) + 1
    assert not [*cache.glob(".*.unfinished")]
