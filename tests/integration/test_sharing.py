"""Pins, snapshots and failures against a Hub on the loopback interface, over HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import READ, Hub
from tests.support.hub_world import World
from tests.support.paths import ROOT

WEIGHTS = b"weights" * 3000
FILES = {
    "config.json": '{"model_type": "llama"}',
    "tokenizer.json": "{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "modeling.py": "code",
    "README.md": "---\nlicense: apache-2.0\n---\n",
}
FETCH = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from stlm_kd.errors import StlmKdError
from stlm_kd.sharing import pins

def fetch(name):
    try:
        folder = pins.local_folder(name)
        files = {path.name: path.read_text(errors="replace") for path in folder.iterdir()}
        return {"commit": folder.name, "files": files}
    except StlmKdError as error:
        return {"error": f"{type(error).__name__}: {error}", "code": error.exit_code}

def fetch_alone(name):
    pins.current = pins.Pins
    return fetch(name)

if sys.argv[1] == "--alone":
    print(json.dumps([*ThreadPoolExecutor(9).map(fetch_alone, sys.argv[2:])]))
else:
    print(json.dumps([*map(fetch, sys.argv[1:])]))
"""


def fetch(world: World, *names: str, **variables: str) -> list[dict[str, Any]]:
    """The folders of models, or the errors."""
    rows: list[dict[str, Any]] = world.python(FETCH, *names, **variables)
    return rows


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with Hub() as hub:
        yield World(hub, tmp_path)


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The message for each model of a Hub on which everything goes wrong."""
    with Hub() as hub:
        world = World(hub, tmp_path_factory.mktemp("failures"))
        hub.add("model", "org/fine", FILES)
        hub.add("model", "org/private", FILES, private=True)
        hub.add("model", "org/gated", FILES, gated=True)
        hub.add("model", "org/disabled", FILES, disabled=True)
        hub.add("model", "org/pickles", {"config.json": "{}", "pytorch_model.bin": b"x"})
        hub.add(
            "model", "org/pickles", {"model.safetensors": b"x"}, branch="refs/pr/1", pull_request=("t", "bot")
        )
        hub.add("model", "org/gguf", {"config.json": "{}", "model.gguf": b"x"})
        hub.add("model", "org/gguf-alone", {"b.gguf": b"x", "a b.gguf": b"x"})
        hub.add("model", "org/nothing", {"README.md": "# nothing"})
        index = {"weight_map": {"a": "pytorch_model-1.bin"}}
        hub.add(
            "model", "org/index", {"config.json": "{}", "model.safetensors.index.json": json.dumps(index)}
        )
        for status in (400, 403, 418, 429, 500, 502, 503, 504):
            hub.add("model", f"org/{status}", FILES)
            hub.fault(f"GET /api/models/org/{status}", status=status, retry_after=17)
        hub.fault("GET /api/models/org/hang", wait=3)
        hub.fault("GET /api/models/org/cut", cut=20)
        hub.fault("GET /api/models/org/html", body=b"<html>log in</html>")
        hub.fault("GET /api/models/org/bytes", body=b'{"sha": "\xff\xfe"}')
        hub.fault("GET /api/models/org/other", body=b'{"id": "org/other", "sha": "main"}')
        for name in ("hang", "cut", "html", "bytes", "other"):
            hub.add("model", f"org/{name}", FILES)
        hub.add("model", "org/wrong", FILES)
        hub.fault("GET .*/org/wrong/.*config.json", corrupt=True)
        names = [f"org/{name}" for name in FAILURES if "no " not in name and "token" not in name]
        found = dict(zip(names, fetch(world, "--alone", *names), strict=True))
        assert not [request for request in hub.requests if "refs/pr" in request or "discussions" in request]
        (found["org/fine bad token"],) = fetch(world, "org/fine", HF_TOKEN="hf_unknown")
        (found["org/absent token"], found["org/gated token"]) = fetch(
            world, "org/absent", "org/gated", HF_TOKEN=READ
        )
        (found["org/no endpoint"],) = fetch(world, "org/x", HF_ENDPOINT="nonsense://")
        (found["org/no network"],) = fetch(world, "org/x", HF_ENDPOINT="http://127.0.0.1:9")
        (found["org/no online"],) = fetch(world, "org/x", HF_HUB_OFFLINE="1")
    return {name.removeprefix("org/"): row.get("error", f"none: {row}") for name, row in found.items()}


FAILURES = {
    "absent": ("MissingResourceError", "no such public model on the Hub", "check the name"),
    "private": ("MissingResourceError", "no such public model on the Hub", "if it is private, log in"),
    "absent token": (
        "MissingResourceError",
        "no such model on the Hub that your token may read",
        "use a token",
    ),
    "fine bad token": ("MissingResourceError", "does not accept your token", "log in again"),
    "gated": ("MissingResourceError", "a gated model, and you are not logged in", "accept its terms at http"),
    "gated token": (
        "MissingResourceError",
        "a gated model, and your account has no access",
        "ask for access",
    ),
    "disabled": ("MissingResourceError", "the Hub disabled this model", "use another one"),
    "fine@v9": ("MissingResourceError", "no such revision", "/org/fine/commits/main"),
    "fine@refs/pr/1": (
        "MissingResourceError",
        "a pull request's branch",
        "give the commit that you reviewed",
    ),
    "fine@": ("MissingResourceError", "revision '' found", "expected a branch"),
    "pickles": ("ModelError", "pickled weights only (pytorch_model.bin)", "convert what you trust"),
    "gguf": (
        "ModelError",
        "no model.safetensors in the repository, but GGUF files (model.gguf)",
        "hf download org/gguf model.gguf --revision ",
    ),
    "gguf-alone": (
        "ModelError",
        "but GGUF files (a b.gguf, b.gguf)",
        "hf download org/gguf-alone 'a b.gguf'",
    ),
    "nothing": ("ModelError", "no model.safetensors in the repository", "expected the weights"),
    "index": ("ModelError", "names 'pytorch_model-1.bin'", "only safetensors weights are read"),
    "429": ("RateLimited", "rate limit", "in 17 seconds"),
    "400": ("MissingResourceError", "status 400", "see http"),
    "403": ("MissingResourceError", "the Hub forbids it", "use a token that may read it"),
    "418": ("MissingResourceError", "status 418", "see http"),
    "500": ("HubUnreachable", "a fault of its own (status 500)", "try again later"),
    "502": ("HubUnreachable", "a fault of its own (status 502)", "try again later"),
    "503": ("HubUnreachable", "a fault of its own (status 503)", "try again later"),
    "504": ("HubUnreachable", "a fault of its own (status 504)", "try again later"),
    "hang": ("HubUnreachable", "did not answer in time", "HF_HUB_ETAG_TIMEOUT"),
    "cut": ("HubUnreachable", "cannot be reached", "check the network"),
    "html": ("MissingResourceError", "not that of a Hub", "whether the network wants a login"),
    "bytes": ("MissingResourceError", "not that of a Hub", "check HF_ENDPOINT"),
    "other": ("MissingResourceError", "not that of a Hub", "check HF_ENDPOINT"),
    "wrong": ("MissingResourceError", "config.json is not the file that was published: git", "delete /"),
    "no endpoint": ("MissingResourceError", "HF_ENDPOINT: 'nonsense:' found", "correct or unset it"),
    "no network": ("HubUnreachable", "http://127.0.0.1:9 cannot be reached", "check the network"),
    "no online": ("HubUnreachable", "offline mode is on", "hf download org/x"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_failure_has_its_own_message(failures: dict[str, str], name: str) -> None:
    kind, cause, remedy = FAILURES[name]
    assert failures[name].startswith(f"{kind}: "), failures[name]
    assert cause in failures[name]
    assert remedy in failures[name]
    assert "\n" not in failures[name]


def test_no_two_causes_read_alike(failures: dict[str, str]) -> None:
    """The Hub does not say whether a repository that one may not read exists."""
    texts = [
        text.partition(": ")[2].partition(": ")[2] for name, text in failures.items() if name != "private"
    ]
    assert len({*texts}) == len(texts) == len(FAILURES) - 1


def test_a_model_is_fetched_by_commit_with_one_request_for_information(world: World) -> None:
    old = world.hub.add("model", "org/name", FILES, tag="v1")
    new = world.hub.add("model", "org/name", {"config.json": "{}"})
    main, tagged, commit = fetch(world, "org/name", "org/name@v1", f"org/name@{old}")
    assert (main["commit"], tagged["commit"], commit["commit"]) == (new, old, old)
    assert main["files"].keys() == {"config.json", "tokenizer.json", "model.safetensors"}, (
        "no pickles, no code"
    )
    assert main["files"]["config.json"] == "{}"
    asked = [request for request in world.requests if "/api/models/" in request]
    assert [request.split("?")[0] for request in asked] == [
        "GET /api/models/org/name",
        "GET /api/models/org/name/revision/v1",
    ]
    assert not [request for request in world.requests if "/main/" in request], "everything by commit"

    fetch(world, "org/name", f"org/name@{old}")
    assert len(world.requests) == 1, "a warm cache asks what main means, and a commit asks nothing"
    again = fetch(world, "org/name", "org/name@v1", f"hub:org/name@{old[:9]}", HF_HUB_OFFLINE="1")
    assert [row["commit"] for row in again] == [new, old, old]
    assert not world.requests


def test_without_the_hub_a_branch_means_what_it_meant_when_it_was_fetched(world: World) -> None:
    first = world.hub.add("model", "org/name", FILES, tag="v1")
    fetch(world, "org/name")
    world.hub.add("model", "org/name", {"config.json": "{}"}, tag="v2")
    world.hub.fault(".*", wait=3)
    started = time.monotonic()
    rows = fetch(world, "org/name", "org/name@main", f"org/name@{first}", "org/name@v2", "org/never")
    assert time.monotonic() - started < 8, "one wait of a second for all names"
    assert [row.get("commit") for row in rows] == [first, first, first, None, None]
    assert f"v2 was never fetched, the cache has main ({first[:7]})" in rows[3]["error"]
    assert rows[4]["error"].startswith("HubUnreachable: org/never: ")
    assert len(world.requests) == 1
    assert world.stderr.count("\n") == 1
    assert "names mean what they meant when they were fetched" in world.stderr


def test_a_name_keeps_its_commit_within_a_command_and_in_its_processes(world: World) -> None:
    code = """
import json, os, subprocess, sys, urllib.request
from pathlib import Path
from stlm_kd.sharing import pins
with pins.using(pins.Pins()) as here:
    first = pins.local_folder("org/name").name
    Path("moved").touch()
    while not Path("done").exists(): pass
    told = subprocess.check_output([sys.executable, "-c", sys.argv[1], here.as_json()], text=True)
    with pins.using(pins.Pins(outer=here)):
        again = [pins.local_folder(name).name for name in ("org/name", f"org/name@{first}")]
    print(json.dumps([first, *again, *told.split()]))
"""
    worker = """
import sys
from stlm_kd.sharing import pins
pins.use(pins.from_json(sys.argv[1], "the text"))
print(pins.local_folder("org/name").name)
"""
    first = world.hub.add("model", "org/name", FILES)

    def move() -> None:
        while not (world.home / "moved").exists():
            time.sleep(0.05)
        world.hub.add("model", "org/name", {"config.json": "{}"})
        (world.home / "done").touch()

    mover = threading.Thread(target=move)
    mover.start()
    told = world.python(code, worker)
    mover.join()
    assert told == [first] * 4
    assert sum("/api/models/" in request for request in world.requests) == 1


def test_a_rerun_keeps_its_commits_and_says_so(world: World) -> None:
    code = """
import json, sys
from stlm_kd.sharing import pins
from stlm_kd.sharing.names import hub_name
found = []
earlier = open("earlier.json").read() if len(sys.argv) > 1 else pins.Pins().as_json()
for moved in ("keep", "update", "frozen"):
    here = pins.from_json(earlier, "earlier.json", moved=moved)
    found.append(here.resolve(hub_name("org/name")).commit)
    if len(sys.argv) == 1: open("earlier.json", "w").write(here.as_json())
print(json.dumps(found))
"""
    first = world.hub.add("model", "org/name", FILES)
    world.python(code)
    (earlier,) = json.loads((world.home / "earlier.json").read_text())["pins"]
    assert (earlier["commit"], earlier["licence"]) == (first, "apache-2.0")
    second = world.hub.add("model", "org/name", {"config.json": "{}"})
    assert world.python(code, "again") == [first, second, first]
    assert len(world.requests) == 2, "frozen asks nothing"
    assert f"org/name has moved on ({first[:7]} → {second[:7]}); {first[:7]} is used" in world.stderr
    world.hub.add("model", "org/name", {}, private=True)
    assert world.python(code.replace('"update"', '"keep"'), "again") == [first, first, first]
    assert "no such public model" in world.stderr


def test_one_changed_byte_in_any_blob_is_found(world: World) -> None:
    code = """
import json
from stlm_kd.errors import StlmKdError
from stlm_kd.sharing import pins
found = []
for name in ("config.json", "tokenizer.json", "model.safetensors"):
    blob = (pins.local_folder("org/name") / name).resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        pins.local_folder("org/name")
    except StlmKdError as error:
        found.append([name, str(blob), str(error)])
    blob.write_bytes(content)
print(json.dumps(found))
"""
    world.hub.add("model", "org/name", FILES)
    for online in (True, False):
        found = world.python(code, **({} if online else {"HF_HUB_OFFLINE": "1"}))
        assert len(found) == 3
        for name, blob, message in found:
            assert f"{name} is not the file that was published" in message
            assert f" found, {Path(blob).name} expected; delete {blob} and run the command again" in message
    Path(blob).unlink()
    assert fetch(world, "org/name")[0]["files"]["model.safetensors"] == WEIGHTS.decode()


def test_a_broken_download_is_resumed_or_fails_with_one_message(world: World) -> None:
    world.hub.add("model", "org/name", FILES)
    world.hub.fault("GET /_cdn/", cut=5000, times=1)
    assert fetch(world, "org/name")[0]["files"]["model.safetensors"] == WEIGHTS.decode()


def test_shards_are_taken_from_the_index_and_nothing_else(world: World) -> None:
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    shards = {"part-1.safetensors": b"1", "part-2.safetensors": b"2", "adapter_model.safetensors": b"3"}
    files = {
        "config.json": "{}",
        "model.safetensors.index.json": json.dumps(index),
        "../up.json": "{}",
        **shards,
    }
    world.hub.add("model", "org/parts", files)
    (row,) = fetch(world, "org/parts")
    names = {"config.json", "model.safetensors.index.json", "part-1.safetensors", "part-2.safetensors"}
    assert row["files"].keys() == names


def test_transformers_loads_the_folder_without_a_request(world: World, shared_data: Path) -> None:
    code = """
import json, os
from stlm_kd.sharing import pins
folder = pins.local_folder("org/stories")
open("fetched", "w").close()
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
print(json.dumps([len(tokenizer), model.num_parameters()]))
"""
    source = shared_data / "models/stories260K"
    world.hub.add("model", "org/stories", {file.name: file for file in source.iterdir() if file.is_file()})
    assert world.python(code) == [512, 260_032]
    first = [request.split("/resolve/")[0] for request in world.requests if "/resolve/" in request]
    assert len(first) == 5, "one HEAD a file, all by our own fetching"
    assert [request for request in world.requests if "/api/models/" in request] == [
        "GET /api/models/org/stories?blobs=true 200"
    ]


def test_default_pins_of_suites_are_refreshed_and_followed(world: World) -> None:
    code = """
import json
from pathlib import Path
from stlm_kd.eval import pins
here = Path("pins.json")
unpinned = pins.benchmark("nyu-mll/blimp").commit
changes = pins.refresh_pins(here)
pins.FILE = here
given = pins.benchmark("nyu-mll/blimp@v1").commit
print(json.dumps([unpinned, pins.benchmark("nyu-mll/blimp").commit, given, pins.refresh_pins(here), changes]))
"""
    names = json.loads((ROOT / "eval/pins.json").read_text())
    commits = {name: world.hub.add("dataset", name, {"README.md": name}, tag="v1") for name in names}
    new = world.hub.add("dataset", "nyu-mll/blimp", {"README.md": "2"})
    unpinned, pinned, given, again, changes = world.python(code)
    assert (unpinned, pinned, given) == (new, new, commits["nyu-mll/blimp"])
    assert not again
    assert changes == {name: [None, commit] for name, commit in (commits | {"nyu-mll/blimp": new}).items()}
    assert "nyu-mll/blimp: unpinned" in world.stderr


def test_every_built_in_suite_has_an_entry_and_none_is_invented() -> None:
    from stlm_kd.eval.fine_tuning import conll2003, glue, squad
    from stlm_kd.eval.harness.task_data import LOCAL
    from stlm_kd.eval.language_modeling import wikitext
    from stlm_kd.eval.pins import default_pins

    named = {
        glue.Glue.hub,
        conll2003.HUB,
        squad.HUB,
        wikitext.HUB[0],
        *(row.hub[0] for row in LOCAL.values()),
    }
    assert default_pins().keys() == named
    assert all(commit is None or len(commit) == 40 for commit in default_pins().values())
