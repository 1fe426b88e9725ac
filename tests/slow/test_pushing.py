"""Push, pull and search, with the real commands over HTTP to a Hub on this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

import stlm_kd
import stlm_kd.publishing.push as pushing
from stlm_kd.artifacts.hashing import sealed
from stlm_kd.artifacts.provenance import Program
from stlm_kd.data.synthetic import sample_documents
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import RecipeError
from stlm_kd.publishing.models import push_model
from stlm_kd.recipe.lock import read_lock
from tests.support.hub import READ, WRITE, Hub
from tests.support.paths import installed_copy
from tests.support.road import LLAMA, model_folder

BASE = f"""task: clm
student: {{tokenizer: org/words, architecture: {LLAMA}}}
data: {{train: data/train.txt, validation: {{hub: org/tales, split: train}}, context: 64}}
train: {{steps: 2, effective_batch: 4, learning_rate: 5e-3}}
tracking: []
"""
MINE = """# Purpose: A tiny student of one teacher.
extends: base.yaml
teachers: [{name: a, model: org/teacher}]   # it never sees the held-out text
objectives: [{loss: labels}, {loss: reverse_kl}]
eval: [perplexity]
seeds: [1, 2]
"""
LABELS = "objectives: [{loss: labels}]\n"
BAD = f"""task: clm
student: {{tokenizer: own, architecture: {LLAMA}}}
teachers: [{{name: a, model: /models/big}}, {{name: b, recipe: "hf://bob/teacher"}}]
data: {{train: [train.txt, $HOME/train.txt, data/train.txt], validation: data/big.txt, context: 64}}
objectives: [{{loss: labels}}]
train: {{steps: 2}}
tracking: [wandb]
# sk-abcdefghijklmnopqrstuvwxyz
"""
RUNNER = """
import json, sys
from glob import glob
import huggingface_hub.constants as constants
from typer.testing import CliRunner
from stlm_kd.cli.main import app
told = []
commands, last = json.load(sys.stdin)
for words in [*commands, last]:
    if words is last:
        print(json.dumps(told), flush=True)
    words = [glob("runs/*-*")[0] if word == "RUN" else word for word in words]
    constants.HF_HUB_OFFLINE = words[0] == "OFFLINE"
    sys.argv = ["stlm-kd", *words[constants.HF_HUB_OFFLINE:]]
    ended = CliRunner().invoke(app, sys.argv[1:])
    told.append((ended.exit_code, ended.stdout, ended.stderr + repr(ended.exception or "")))
"""
Told = dict[str, tuple[int, str, str]]


class World:
    """What the commands of an author and of a stranger printed, and the Hub between them."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home, self.program = hub, home, installed_copy(home / "program")
        self.told: Told = {}

    def run(self, who: str, commands: dict[str, list[str]], last: list[str], **variables: str) -> Told:
        """Exit code, output and messages of each command; a killed one may come last."""
        with subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.home / who,
            env=self.environment(who, **variables),
            text=True,
        ) as process:
            self.process = process
            out, _ = process.communicate(json.dumps([[*commands.values()], last]), timeout=300)
        return dict(zip(commands, map(tuple, json.loads(out)), strict=True))

    def upon(self, request: str, then: Callable[[], object]) -> None:
        """Make a request wait, and do something meanwhile."""
        self.hub.fault(request, wait=1, times=1)

        def watch() -> None:
            while not any(re.search(request, line) for line in self.hub.requests):
                time.sleep(0.05)
            then()

        threading.Thread(target=watch, daemon=True).start()

    def environment(self, who: str, **variables: str) -> dict[str, str]:
        place = self.home / who
        own = {"HOME": str(place), "STLM_KD_CACHE": str(place / "own"), "PYTHONPATH": str(self.program)}
        return self.hub.environment(place, **own, **variables)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    author = home / "author"
    for folder in ("author/data", "author/own", "stranger"):
        (home / folder).mkdir(parents=True)
    documents = [*sample_documents("train", size=20_000, seed=0)]
    (author / "data/train.txt").write_text("\n".join(documents))
    (author / "train.txt").write_text("Here.\n")
    (author / "data/big.txt").write_text("x" * 11 * 1024**2)
    (author / "base.yaml").write_text(BASE)
    (author / "mine.yaml").write_text(MINE)
    (author / "bad.yaml").write_text(BAD)
    tokenizer = train_tokenizer(documents, size=300)
    tokenizer.save_pretrained(author / "own")
    model_folder(home / "teacher", "llama", tokenizer)
    words = {path.name: path for path in (author / "own").iterdir()}
    teacher = {path.name: path for path in (home / "teacher").iterdir()}
    tales = "".join(
        json.dumps({"text": one}) + "\n" for one in sample_documents("validation", size=5_000, seed=0)
    )
    with Hub() as hub:
        hub.add("model", "org/words", words | {"README.md": "---\nlicense: mit\n---\n"})
        hub.add("model", "org/teacher", teacher | {"README.md": "---\nlicense: mit\n---\n"}, tag="v1")
        hub.add("dataset", "org/tales", {"train.jsonl": tales, "README.md": "---\nlicense: mit\n---\n"})
        hub.add(
            "model",
            "bob/teacher",
            {"recipe.yaml": BASE.replace("data/train.txt", "{sample: train}") + LABELS},
        )
        hub.add(
            "model",
            "eve/\x1b[31mtiny",
            {
                "README.md": '---\ntags: [stlm-kd-recipe]\nbase_model: ["a\\e[2J"]\n'
                'purpose: "x\\u202ey"\n---\n'
            },
        )
        hub.add("model", "eve/other", {"README.md": "---\ntags: [stlm-kd-recipe, mlm]\n---\n"})
        odd = "base_model: 5\nself: 1\npurpose: {a: b}\nmodel-index: x\nlicense: [1]\neval_results: y\n"
        hub.add("model", "eve/five", {"README.md": f"---\ntags: [stlm-kd-recipe, 5]\n{odd}---\n"})
        hub.add("model", "alice/taken", {"README.md": "# Mine", "config.json": "{}"})
        yield World(hub, home)


@pytest.fixture(scope="module")
def told(world: World) -> Told:
    """A run and its pushes by the author, then what a stranger makes of them."""
    push, run = ["recipe", "push"], ["recipe", "push", "--allow-dirty", "RUN"]
    both = [*run, "hf://alice/second", "--with-data", "--with-model", "hf://alice/model-2"]
    world.hub.fault("POST /api/models/alice/second/commit", status=403, times=1)
    commands = {
        "refused": [*push, "bad.yaml", "hf://alice/bad", "--with-data"],
        "run": ["distill", "-r", "mine.yaml", "--no-rehearsal"],
        "stays": [*run, "hf://alice/tiny"],
        "dry": [*run, "hf://alice/tiny", "--with-data", "--dry-run"],
        "unrun": [*push, "mine.yaml", "hf://alice/unrun", "--with-data", "--private", "--json"],
        "public": [*push, "mine.yaml", "hf://alice/taken", "--with-data", "--private"],
        "folder": [*push, "mine.yaml", "out", "--with-data"],
        "taken": [*run, "hf://alice/taken", "--with-data", "--with-model", "hf://alice/never"],
        "itself": [*push, "mine.yaml", ".", "--with-data"],
        "no model": [*push, "mine.yaml", "hf://alice/x", "--with-data", "--with-model", "hf://alice/y"],
        "push": [
            *run,
            "hf://alice/tiny",
            "--with-data",
            "--tag",
            "v1",
            "--with-model",
            "hf://alice/model",
            "--json",
        ],
        "failed": [*both, "--tag", "v2", "--json"],
        "repeated": [*both, "--tag", "v2", "--json"],
        "again": [*run, "hf://alice/tiny", "--with-data", "--with-model", "hf://alice/model", "--json"],
        "tagged": [*run, "hf://alice/tiny", "--with-data", "--tag", "v1"],
        "model": ["push", "RUN", "hf://alice/student", "--private", "--json"],
        "raced": [*push, "mine.yaml", "hf://alice/raced", "--with-data"],
        "no folder": ["push", "org/teacher", "hf://alice/student"],
        "pickle": ["push", "own", "hf://alice/student"],
    }
    world.upon(
        "POST /api/models/alice/raced/commit", lambda: world.hub.add("model", "alice/raced", {"a": "b"})
    )
    world.upon("POST /api/models/alice/killed/preupload", lambda: world.process.kill())
    world.told = world.run("author", commands, ["push", "RUN", "hf://alice/killed"], HF_TOKEN=WRITE)
    shown = ["recipe", "search", "--json"]
    stranger = {
        "all": shown,
        "words": [*shown, "TINY"],
        "task": [*shown, "--task", "mlm"],
        "teacher": [*shown, "--teacher", "org/teacher"],
        "printed": ["recipe", "search", "tiny"],
        "pull": ["recipe", "pull", "hf://alice/tiny@v1", "copy"],
        "verified": ["recipe", "verify", "hf://alice/tiny@v1", "--rescore", "--json"],
        "locked": ["distill", "-r", "hf://alice/tiny@v1", "--locked", "--no-rehearsal"],
        "forbidden": [*push, "copy", "hf://alice/tiny", "--with-data"],
    }
    stranger["offline"] = ["OFFLINE", *shown, "tiny"]
    return world.told | world.run("stranger", stranger, ["--version"], HF_TOKEN=READ)


def files(world: World, repo: str) -> dict[str, bytes]:
    found = world.hub.repos["model", repo]
    return {path: blob.content for path, blob in found.commits[found.branches["main"]].files.items()}


def commit(world: World, repo: str) -> str:
    return world.hub.repos["model", repo].branches["main"]


def test_what_may_not_be_pushed_is_told_at_once_with_what_to_do(world: World, told: Told) -> None:
    code, _, text = told["refused"]
    assert code == 3, text
    says = {
        "student.tokenizer": "own is a folder of this machine; give the recipe that trains it",
        "teachers[0].model": "/models/big is a folder of this machine",
        "recipe.yaml recipe (line 3)": "hf://bob/teacher may change; name its commit",
        "data.train[0].path": "only text and tables in the folder data beside the recipe are pushed",
        "data.train[1].path": "only text and tables in the folder data",
        "data.validation[0].path": "11,534,336 bytes; expected at most 10,485,760",
        "tracking[0]": "wandb found; it would send data to a service; remove it",
        "recipe.yaml": "an API key in line 8; revoke it",
    }
    for place, message in says.items():
        lines = [line for line in text.splitlines() if line.startswith(f"  {place}")]
        assert [line for line in lines if message in line], (place, lines)
    assert f"not pushed: {len(says)} faults" in text and "sk-abc" not in text
    assert ("model", "alice/bad") not in world.hub.repos
    code, _, text = told["stays"]
    assert code == 3 and "data/train.txt: 20,046 bytes that stay here" in text and "--with-data" in text
    assert told["dry"][0] == 0 and "nothing was pushed" in told["dry"][1], told["dry"]
    assert told["no model"][0] == 2 and "is no run" in told["no model"][2]


Edit = tuple[str, str, str]
"""A file, a pattern and its replacement."""

BAD_RUNS: dict[str, tuple[Edit, str]] = {
    "failed": (("run.json", '"done"', '"failed"'), "the run is failed; finish it with the command"),
    "no lock": (("recipe.lock", r"(?s).*", ""), "recipe.lock: none in the run"),
    "recipe": (("recipe.yaml", "steps: 2", "steps: 3"), "recipe.lock recipe: sha256:"),
    "data": (
        ("recipe.lock", "sha256: sha256:....", "sha256: sha256:0000"),
        "data.train.0.sha256",
    ),
    "unpinned": (("recipe.lock", r"    commit: .*\n", ""), "org/words: not in recipe.lock"),
    "results": (("results.json", '"remarks"', ' "remarks"'), "are the results of another run"),
    "secret": (
        ("results.json", "{", '{"x": "hf_' + "a1" * 17 + '",'),
        "a token of the Hub in line 1",
    ),
    "home": (
        ("results.json", "{", '{"x": "/home/al/x",'),
        "a folder of this machine in line 1",
    ),
    "trial": (
        (
            "recipe.yaml",
            r"suite: perplexity(\n  \S.*)*",
            "suite: lm-eval\n  tasks: [sample_minimal_pairs]\n  limit: 4",
        ),
        "eval[0].limit: 4 examples are a trial",
    ),
    "texts": (
        ("results.json", r'"report": \{', '"report": {"beside": {"a": {"explained": {"1": ["A text."]}}}, '),
        "holds texts of examples, which agreement explains",
    ),
    "service": (("recipe.yaml", r"tracking: \[\]", "tracking: [wandb]"), "would send data to a service"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_run_that_is_not_what_it_says_stays_here(
    name: str, world: World, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told["push"][0] == 0
    (made,) = (world.home / "author" / "runs").glob("mine-*")
    run = tmp_path / "run"
    shutil.copytree(made, run, ignore=shutil.ignore_patterns("students"))
    (file, pattern, new), says = BAD_RUNS[name]
    text, count = re.subn(pattern, new.replace("\\", r"\\"), (run / file).read_text(), count=1)
    assert count == 1
    if file == "run.json":
        plain = {key: value for key, value in json.loads(text).items() if key not in ("sha256", "sealed")}
        text = json.dumps(sealed(plain))
    (run / file).write_text(text)
    if not text:
        (run / file).unlink()
    monkeypatch.chdir(world.home / "author")
    with pytest.raises(RecipeError) as refused:
        stlm_kd.push_recipe(run, "./never", with_data=name != "texts", allow_dirty=True)
    assert says in str(refused.value)
    assert "a1a1" not in str(refused.value) and not Path("never").exists()


def test_the_lock_of_a_run_says_whether_others_have_its_code(
    world: World, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert told["push"][0] == 0
    (made,) = (world.home / "author" / "runs").glob("mine-*")
    shutil.copytree(made, tmp_path / "run", ignore=shutil.ignore_patterns("students"))
    lock = (tmp_path / "run" / "recipe.lock").read_text()
    by = r"(  by: .*\n)(  code: .*\n)?"
    monkeypatch.chdir(world.home / "author")
    for code, refused in (("1" * 40, False), ("1" * 40 + " dirty", True)):
        (tmp_path / "run" / "recipe.lock").write_text(re.sub(by, rf"\1  code: git:{code}\n", lock, count=1))
        with monkeypatch.context() as now:
            here = f"git:{'2' * 40}{'' if refused else ' dirty'}"
            now.setattr(pushing, "program", partial(Program, "1", here))
            with pytest.raises(RecipeError) as caught:
                stlm_kd.push_recipe(tmp_path / "run", "./never")  # which lacks its data
        assert ("its files are not those of the commit" in str(caught.value)) is refused
        assert f"the code git:{code}: " in str(caught.value) or not refused


def test_a_run_is_pushed_as_one_commit_with_what_it_says_of_itself(world: World, told: Told) -> None:
    code, out, text = told["push"]
    assert code == 0, text
    pushed = json.loads(out)
    assert pushed["address"] == f"hf://alice/tiny@{commit(world, 'alice/tiny')}"
    used = {one["id"]: (one["commit"], one["licence"]) for one in pushed["used"]}
    assert used["org/teacher"] == (commit(world, "org/teacher"), "mit") and len(used) == 3
    there = files(world, "alice/tiny")
    assert {*there} == {
        "recipe.yaml", "base.yaml", "recipe.lock", "results.json", "README.md", "data/train.txt",
        ".gitattributes",
    }  # fmt: skip
    assert (there["recipe.yaml"].decode(), there["base.yaml"].decode()) == (MINE, BASE), "as written"
    run = world.home / "author" / "runs"
    (results,) = run.glob("mine-*/results.json")
    assert there["results.json"] == results.read_bytes()
    lock = read_lock(there["recipe.lock"].decode())
    assert lock.published == {
        "students/student/seed-1/model": f"hf://alice/model@{commit(world, 'alice/model')}"
    }
    assert pushed["model"] == lock.published["students/student/seed-1/model"]
    assert world.hub.repos["model", "alice/tiny"].tags == {"v1": commit(world, "alice/tiny")}
    assert len(world.hub.repos["model", "alice/tiny"].commits) == 2, "made, and one commit"
    assert json.loads(told["again"][1])["address"] == pushed["address"], told["again"]
    assert told["tagged"][0] == 5 and "the tag v1 exists" in told["tagged"][2]
    assert told["failed"][0] == 5 and "alice/second: your token may not write" in told["failed"][2]
    assert told["repeated"][0] == 0, told["repeated"]
    assert world.hub.repos["model", "alice/second"].tags == {"v2": commit(world, "alice/second")}
    card = ModelCard(there["README.md"].decode()).data
    assert (card.library_name, card.license, card.base_model) == ("stlm-kd", "unknown", ["org/teacher"])
    assert {one.dataset_revision for one in card.eval_results} == {
        world.hub.repos["dataset", "org/tales"].branches["main"]
    }


def test_a_recipe_without_a_run_gets_a_lock_and_a_card_that_says_so(world: World, told: Told) -> None:
    code, _, text = told["unrun"]
    assert code == 0, text
    there = files(world, "alice/unrun")
    assert "results.json" not in there and "Not yet run" in there["README.md"].decode()
    lock = read_lock(there["recipe.lock"].decode())
    assert lock.models["teachers.a"].commit == commit(world, "org/teacher")
    assert world.hub.repos["model", "alice/unrun"].private
    assert not (world.home / "author" / "recipe.lock").exists()
    assert told["folder"][0] == 0, told["folder"]
    out_folder = world.home / "author" / "out"
    assert {name for name in there if name != ".gitattributes"} == {
        path.relative_to(out_folder).as_posix() for path in out_folder.rglob("*") if path.is_file()
    }


def test_a_place_with_something_else_is_left_alone(world: World, told: Told) -> None:
    assert told["taken"][0] == 5 and "holds README.md but no recipe.yaml" in told["taken"][2]
    assert ("model", "alice/never") not in world.hub.repos, "the model was not pushed alone"
    assert told["public"][0] == 5 and "alice/taken: is public" in told["public"][2]
    assert {*files(world, "alice/taken")} == {"README.md", "config.json"}
    assert told["itself"][0] == 2 and "holds mine.yaml itself" in told["itself"][2]
    assert told["forbidden"][0] == 5 and "your token may not write" in told["forbidden"][2], told["forbidden"]


def test_a_model_goes_with_its_card_and_nothing_else(world: World, told: Told) -> None:
    assert told["model"][0] == 0, told["model"]
    there = files(world, "alice/student")
    assert {*there} - {"generation_config.json", ".gitattributes"} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert there["model.safetensors"] == files(world, "alice/model")["model.safetensors"]
    named = files(world, "alice/model")["README.md"].decode()
    assert "`stlm-kd recipe pull hf://alice/tiny`" in named
    assert ModelCard(named).data.eval_results and "recipe pull" not in there["README.md"].decode()
    assert told["no folder"][0] == 2 and told["pickle"][0] == 3, (told["no folder"], told["pickle"])


def test_a_pulled_recipe_gives_the_same_students_in_a_fresh_cache(world: World, told: Told) -> None:
    assert told["pull"][0] == told["locked"][0] == 0, (told["pull"], told["locked"])
    copied = world.home / "stranger" / "copy"
    assert (copied / "data/train.txt").read_bytes() == files(world, "alice/tiny")["data/train.txt"]
    hashes = [
        {path.parts[-3]: sha256(path.read_bytes()).hexdigest() for path in found}
        for who in ("author", "stranger")
        if (found := sorted((world.home / who / "runs").glob("*/students/student/*/model/model.safetensors")))
    ]
    assert len(hashes) == 2 and hashes[0] == hashes[1] and {*hashes[0]} == {"seed-1", "seed-2"}


def test_search_finds_built_in_recipes_then_those_on_the_hub(told: Told) -> None:
    found = {name: json.loads(told[name][1]) for name in ("all", "words", "task", "teacher", "offline")}
    places = [one["place"] for one in found["all"]]
    assert places == sorted(places, key=["built-in", "hub"].index) and {*places} == {"built-in", "hub"}
    (tiny,) = [one for one in found["words"] if one["name"] == "hf://alice/tiny"]
    assert tiny == {
        "name": "hf://alice/tiny",
        "place": "hub",
        "task": "clm",
        "teachers": ["org/teacher"],
        "purpose": "A tiny student of one teacher.",
    }
    assert {one["task"] for one in found["task"]} == {"mlm"} and "hf://eve/other" in [
        one["name"] for one in found["task"]
    ]
    assert {one["name"] for one in found["teacher"]} == {
        f"hf://alice/{name}" for name in ("tiny", "unrun", "second")
    }
    (eve,) = [one for one in found["words"] if "eve" in one["name"]]
    assert (eve["name"], eve["teachers"], eve["purpose"]) == (
        r"hf://eve/\x1b[31mtiny",
        [r"a\x1b[2J"],
        r"x\u202ey",
    )
    assert "\x1b" not in told["printed"][1] and r"hf://eve/\x1b[31mtiny" in told["printed"][1]
    assert [(one["teachers"], one["purpose"]) for one in found["all"] if "five" in one["name"]] == [([], "")]
    (cached,) = [one for one in found["offline"] if one["place"] != "built-in"]
    assert (cached["name"], cached["place"]) == ("hf://alice/tiny", "cache")
    assert told["offline"][2].count("switched off") == 1


def test_another_commit_or_a_kill_leaves_the_repository_as_it_was(world: World, told: Told) -> None:
    code, _, text = told["raced"]
    assert code == 5 and "another commit came first; nothing was pushed; push again" in text, text
    assert {*files(world, "alice/raced")} == {".gitattributes", "a"}
    assert {*files(world, "alice/killed")} == {".gitattributes"}
    assert any("alice/killed/preupload" in line for line in world.hub.requests)


def test_a_stranger_scores_the_published_weights_again(told: Told) -> None:
    code, printed, messages = told["verified"]
    assert code == 0, printed + messages
    found = json.loads(printed)
    assert found["rung"] == "rescored" and not found["refuted"]
    assert all(line.startswith("distilled student, seed 1") for line in found["compared"][1:])
    assert any("bits_per_byte" in line and "equal in all" in line for line in found["compared"])


def test_a_folder_that_is_none_of_the_runs_students_is_pushed_with_a_short_card(
    world: World, told: Told, tmp_path: Path
) -> None:
    (record,) = (world.home / "author" / "runs").glob("*/run.json")
    run = Path(shutil.copytree(record.parent, tmp_path / "run"))
    own = run / "students" / "student" / "seed-1"
    (own / "model" / "README.md").unlink()
    whole = push_model(own / "model", "hf://alice/mine", dry_run=True).files["README.md"]
    for name in ("mine/seed-1", "student/best", "student/seed-7"):
        copied = Path(shutil.copytree(own, run / "students" / name))
        card = push_model(copied / "model", "hf://alice/mine", dry_run=True).files["README.md"]
        assert 0 < card < whole / 2, name
