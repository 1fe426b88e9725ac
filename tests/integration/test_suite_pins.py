"""The data sets of suites: locked, read at a named revision, and in copies of this machine."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from stlm_kd.recipe.lock import Lock, read_lock
from tests.support.hub import Hub
from tests.support.hub_world import World

RECIPE = """task: clm
student: {preset: stlm-47m, tokenizer: org/words}
teachers: [{name: a, model: org/a}, {name: b, model: org/b@v1}, {name: c, model: org/c}]
data: {train: {hub: org/tales}, validation: {hub: org/tales, split: test}}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 1}
eval:
- {suite: glue, tasks: [rte, sample-sentiment]}
- ner
- squad
- {suite: perplexity, on: wikitext}
- {suite: lm-eval, tasks: [blimp, sample_minimal_pairs]}
"""
SUITES = {
    "nyu-mll/glue": "glue:rte",
    "lhoestq/conll2003": "ner:conll2003",
    "rajpurkar/squad": "squad:squad_v1.1",
    "Salesforce/wikitext": "perplexity:wikitext",
    "nyu-mll/blimp": "lm-eval:blimp",
}
CODE = """
import json, os
from pathlib import Path
from urllib.request import urlopen
from typer.testing import CliRunner
from stlm_kd.cli.main import app
from stlm_kd.errors import StlmKdError
from stlm_kd.eval import SUITES
from stlm_kd.eval import pins as pinned
from stlm_kd.eval.harness import task_data
from stlm_kd.eval.language_modeling import wikitext
from stlm_kd.publishing.locking import locked
from stlm_kd.recipe import load
from stlm_kd.recipe.suites import suites
from stlm_kd.sharing import pins

NAMES = LISTED

def lock(name, recipe="mine.yaml"):
    ended = CliRunner().invoke(app, ["recipe", "lock", recipe, "-o", name + ".lock"])
    told[name] = [ended.exit_code, ended.output]

def mirror(content):
    Path("copy/glue/hub.json").write_text(content)

told = {}
lock("all")
lock("named", "named.yaml")
os.environ["STLM_KD_DATA"] = "copy"
lock("copy")
mirror(json.dumps({"id": "nyu-mll/glue", "commit": "1" * 40}))
lock("mirror")
mirror('{"id": "nyu-mll/glue", "commit": "main"}')
lock("no mirror")
os.environ["STLM_KD_DATA"] = ""

glue, ner, squad, lm, other = suites([
    {"suite": "glue", "tasks": ["rte"], "hub": "nyu-mll/glue@v1"},
    {"suite": "ner", "hub": "lhoestq/conll2003@v1"},
    {"suite": "squad", "hub": "rajpurkar/squad@v1"},
    {"suite": "lm-eval", "tasks": ["blimp_wh_island"], "hub": ["nyu-mll/blimp@v1"]},
    {"suite": "lm-eval", "tasks": ["blimp_wh_island"], "hub": "nyu-mll/glue@v1"},
])
def options(given):
    return {name: value for name, value in given.items() if name != "suite"}
def task(given):
    return SUITES[given["suite"]].fine_tune_tasks(options(given))[0]
pins.use(pins.Pins())
told["places"] = [task(one).found.hub[0] for one in (glue, ner, squad)]
(built,) = task_data.build(lm["tasks"], source="auto", num_fewshot=None, hub=lm["hub"])
told["rows"] = [row["sentence_good"] for row in built.item.dataset["train"]]
told["rows"] += wikitext.articles("Salesforce/wikitext@v1") + [*task(glue).read("validation").texts[0]]
try:
    SUITES["lm-eval"].check(options(other))
except StlmKdError as error:
    told["other"] = str(error)

Path("recipe.lock").write_text(Path("all.lock").read_text())
try:
    urlopen(os.environ["HF_ENDPOINT"] + "/mark/move")
except OSError:
    pass
for name, frozen in (("locked", False), ("frozen", True)):
    pins.use(pins.Pins())
    with locked("mine.yaml", load("mine.yaml"), frozen=frozen):
        told[name] = [pinned.benchmark(name).commit for name in NAMES]
print(json.dumps(told))
"""


def table(**columns: list[Any]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def card(name: str) -> str:
    files = [f"{{split: {one}, path: {name}/{one}.parquet}}" for one in ("train", "validation", "test")]
    return f"---\nconfigs:\n- {{config_name: {name}, data_files: [{', '.join(files)}]}}\n---\n"


def data_sets(word: str) -> dict[str, dict[str, str | bytes]]:
    """The files of each data set; ``word`` is in all texts."""
    pair = table(sentence1=[word], sentence2=["b"], label=[0], idx=[0])
    line = table(text=[f" = {word} = \n", " text \n"])
    blimp = table(sentence_good=[word], sentence_bad=["worse"])
    splits = ("train", "validation", "test")
    return {
        "nyu-mll/glue": {"README.md": card("rte"), **{f"rte/{split}.parquet": pair for split in splits}},
        "lhoestq/conll2003": {"train.parquet": line, "validation.parquet": line},
        "rajpurkar/squad": {"train.parquet": line, "validation.parquet": line},
        "Salesforce/wikitext": {
            "README.md": card("wikitext-2-raw-v1"),
            **{f"wikitext-2-raw-v1/{split}.parquet": line for split in splits},
        },
        "nyu-mll/blimp": {
            "README.md": "---\nconfigs:\n- {config_name: wh_island, data_files: wh_island.parquet}\n"
            "- {config_name: adjunct_island, data_files: wh_island.parquet}\n---\n",
            "wh_island.parquet": blimp,
        },
    }


@dataclass(frozen=True)
class Told:
    """What the commands printed, the locks that they wrote, all requests, and the commits."""

    found: dict[str, Any]
    locks: dict[str, Lock]
    requests: list[str]
    heads: dict[str, str]
    tagged: dict[str, str]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    home = tmp_path_factory.mktemp("home")
    (home / "mine.yaml").write_text(RECIPE)
    (home / "named.yaml").write_text(RECIPE.replace("- squad", "- {suite: squad, hub: rajpurkar/squad@v1}"))
    (home / "copy/glue/rte").mkdir(parents=True)
    row = {"sentence1": "a", "sentence2": "b", "label": 0, "idx": 0}
    for split in ("train", "validation"):
        (home / "copy/glue/rte" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    with Hub() as hub:
        tagged = {name: hub.add("dataset", name, of, tag="v1") for name, of in data_sets("old").items()}
        heads = {name: hub.add("dataset", name, of) for name, of in data_sets("new").items()}
        hub.add("dataset", "org/tales", {"train.jsonl": '{"text": "a"}\n', "test.jsonl": '{"text": "b"}\n'})
        for name in ("a", "b", "c", "words"):
            of = {"config.json": "{}", "model.safetensors": b"1", "tokenizer.json": "{}"}
            hub.add("model", f"org/{name}", of, tag="v1")
        world = World(hub, home)

        def move() -> None:
            for name in SUITES:
                hub.add("dataset", name, {"moved": "on"})

        hub.fault("/mark/move", act=move)
        found = world.python(CODE.replace("LISTED", repr([*SUITES])), STLM_KD_DATA="")
        names = ("all", "named", "copy", "mirror")
        assert not any(found[name][0] for name in names), found
        locks = {name: read_lock((home / f"{name}.lock").read_text()) for name in names}
        return Told(found, locks, world.requests, heads, tagged)


def test_a_lock_needs_a_request_for_each_repository_and_no_download(told: Told) -> None:
    lock = told.locks["all"]
    models = ("org/a", "org/b/revision/v1", "org/c", "org/words")
    expected = {f"GET /api/models/{name}" for name in models}
    expected |= {f"GET /api/datasets/{name}" for name in ("org/tales", *SUITES)}
    asked = [line.partition("?")[0] for line in told.requests[: len(expected)]]
    assert sorted(asked) == sorted(expected)
    assert {name: lock.eval[place].data for name, place in SUITES.items()} == {
        name: {name: commit} for name, commit in told.heads.items()
    }
    assert {name: lock.data[f"eval.{name}"].commit for name in SUITES} == told.heads
    assert all(lock.data[f"eval.{name}"].files for name in SUITES)
    blimp, generated = lock.eval["lm-eval:blimp"], lock.eval["lm-eval:sample_minimal_pairs"]
    assert blimp.version == "2.0" and (blimp.library or "").startswith("lm-eval 0.4.")
    assert generated.local and not generated.data and lock.eval["glue:sample-sentiment"].local


def test_a_suite_reads_its_data_set_at_the_revision_that_it_names(told: Told) -> None:
    names = ("nyu-mll/glue", "lhoestq/conll2003", "rajpurkar/squad")
    assert told.found["places"] == [f"{name}@{told.tagged[name]}" for name in names]
    good, article, first, second = told.found["rows"]
    assert (good, first, second) == ("old", "old", "b") and "old" in article
    assert "lm-eval: hub: nyu-mll/glue@v1 found; expected a revision of what" in told.found["other"]
    downloads = [line for line in told.requests if "/resolve/" in line]
    assert downloads and not [line for line in downloads for head in told.heads.values() if head in line]
    lock = told.locks["named"]
    assert lock.eval["squad:squad_v1.1"].data == {"rajpurkar/squad@v1": told.tagged["rajpurkar/squad"]}
    assert lock.data["eval.rajpurkar/squad@v1"].asked == "v1"


def test_suites_are_read_as_locked_when_their_data_sets_have_moved(told: Told) -> None:
    assert told.found["locked"] == told.found["frozen"] == [*told.heads.values()]


def test_a_copy_here_is_the_data_set_only_if_it_says_so(told: Told) -> None:
    copy, mirror = (told.locks[name].eval["glue:rte"] for name in ("copy", "mirror"))
    assert copy.local and not copy.data
    assert mirror.local is None and mirror.data == {"nyu-mll/glue": "1" * 40}
    code, text = told.found["no mirror"]
    assert code == 1 and "hub.json: commit 'main' found; expected 40 hexadecimal digits" in text
