"""Recipes by address: the real commands, in one process, against a Hub on this machine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.paths import ROOT

BASE = """task: clm
student: {preset: stlm-47m, tokenizer: {train: bpe, size: 500}}
data: {train: {sample: train, size: 20k}, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}]
train: {steps: 10, clip: 2.0}
seeds: [1, 2]
eval: [perplexity]
sweep:
  length: [{name: short, train.steps: 5}, {name: long, train.steps: 50, train.clip: 3.0}]
"""
CHILD = "extends: base.yaml\ntrain: {steps: 20, clip: null}\nseeds: [3]\n"
TEACHER = "extends: t/base.yaml\nteachers: [{name: t, recipe: t/base.yaml}]\n"
REMOTE = "extends: hf://alice/base@v1\ntrain: {steps: 30}\n"
BROKEN = "extends: hf://alice/base@v1\ntrain: {steps: 30}\nobjectives: [{loss: nothing}]\n"

LOCKED = BASE.replace("{train: bpe, size: 500}", "org/tok").replace("{sample: train, size: 20k}", "data.txt")

WITH_DATA = BASE.replace("{sample: train, size: 20k}", "data/train.txt")
AWAY = BASE.replace("{sample: train, size: 20k}", "data/here.txt")
NAMED = BASE.replace("{train: bpe, size: 500}", "own/tok")

PUBLISHED = "Of the recipe.\n"

RUNNER = """
import json, sys
from typer.testing import CliRunner
from stlm_kd.cli.main import app
told = []
for words in json.load(sys.stdin):
    ended = CliRunner().invoke(app, words)
    told.append((ended.exit_code, ended.output))
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    home = tmp_path_factory.mktemp("home")
    (home / "base").mkdir()
    (home / "base" / "recipe.yaml").write_text(BASE)
    (home / "mine.yaml").write_text(REMOTE)
    (home / "broken.yaml").write_text(BROKEN)
    for file in ("data/train.txt", "data/here.txt", "own/tok/tokenizer.json"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text("Of this machine.\n")
    (home / "data.txt").write_text("One two three.\n")
    (home / "locked.yaml").write_text(LOCKED)
    show = ["recipe", "show", "--resolved"]
    commands = {
        "folder": [*show, "base"],
        "base": [*show, "hf://alice/base@v1"],
        "child": [*show, "hf://alice/base@v2/child.yaml"],
        "teacher": [*show, "hf://alice/base@v2/teacher.yaml"],
        "mine": [*show, "mine.yaml"],
        "broken": ["recipe", "validate", "broken.yaml"],
        "bad": ["recipe", "validate", "hf://mallory/bad"],
        "inside": ["distill", "-r", "hf://alice/data", "--dry-run"],
        "inside locked": ["recipe", "lock", "hf://alice/data", "-o", "data.lock"],
        "outside": ["recipe", "validate", "hf://alice/away"],
        "asked": ["recipe", "validate", "hf://alice/away", "data.train=data/here.txt"],
        "folder here": ["recipe", "validate", "hf://alice/named"],
        "allowed": [*show, "hf://mallory/bad", "data.train={sample: train}", "tracking=[]"],
        "malformed": ["recipe", "validate", "hf://mallory"],
        "missing": ["recipe", "validate", "hf://alice/none"],
        "pull": ["recipe", "pull", "hf://alice/base@v2", "copy"],
        "pull again": ["recipe", "pull", "hf://alice/base@v2", "copy"],
        "pull over": ["recipe", "pull", "hf://alice/base@v2", "copy", "--force"],
        "pull over others": ["recipe", "pull", "hf://alice/base@v1", "own", "--force"],
        "pull here": ["recipe", "pull", "hf://alice/base@v1", ".", "--force"],
        "pull bad": ["recipe", "pull", "hf://mallory/bad"],
        "pulled": [*show, "copy/child.yaml"],
        "same": ["recipe", "diff", "base", "hf://alice/base@v1"],
        "diff": ["recipe", "diff", "hf://alice/base@v1", "copy/child.yaml"],
        "sweep": ["distill", "-r", "hf://alice/base@v1", "--sweep", "length", "--dry-run"],
        "no sweep": ["distill", "-r", "hf://alice/base@v1", "--sweep", "lenght", "--dry-run"],
        "lock": ["recipe", "lock", "locked.yaml", "-o", "recipe.lock"],
        "locked": ["distill", "-r", "locked.yaml", "--locked", "--dry-run"],
        "changed": ["distill", "-r", "locked.yaml", "--locked", "--dry-run", "train.steps=11"],
        "unlocked": ["distill", "-r", "base", "--locked", "--dry-run"],
    }
    later = {
        "moved": ["distill", "-r", "locked.yaml", "--locked", "--dry-run"],
        "relock": ["recipe", "lock", "locked.yaml"],
        "relocked": ["distill", "-r", "locked.yaml", "--locked", "--dry-run"],
    }
    with Hub() as hub:
        hub.add("model", "alice/base", {"recipe.yaml": BASE}, tag="v1")
        files = {"base.yaml": BASE, "child.yaml": CHILD, "teacher.yaml": TEACHER, "t/base.yaml": BASE}
        hub.add("model", "alice/base", {**files, "recipe.yaml": CHILD}, tag="v2")
        bad = BASE.replace("{sample: train, size: 20k}", "~/secret.txt") + "tracking: [wandb]\n"
        hub.add("model", "alice/data", {"recipe.yaml": WITH_DATA, "data/train.txt": PUBLISHED})
        hub.add("model", "alice/away", {"recipe.yaml": AWAY})
        hub.add("model", "alice/named", {"recipe.yaml": NAMED})
        hub.add("model", "mallory/bad", {"recipe.yaml": bad})
        hub.add("model", "org/tok", {"tokenizer.json": "{}"})
        first = _run(hub, home, commands)
        hub.add("model", "org/tok", {"tokenizer.json": "{} "})
        return first | _run(hub, home, later) | {"data.lock": (0, (home / "data.lock").read_text())}


def _run(hub: Hub, home: Path, commands: dict[str, list[str]]) -> dict[str, tuple[int, str]]:
    """Exit code and output of each command."""
    ended = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([*commands.values()]),
        cwd=home,
        env=hub.environment(home, PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="0"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    return dict(zip(commands, map(tuple, json.loads(ended.stdout)), strict=True))


def test_a_recipe_is_the_same_from_a_folder_and_an_address(told: dict[str, tuple[int, str]]) -> None:
    assert told["folder"][0] == told["base"][0] == 0, told["base"]
    assert told["folder"] == told["base"]
    assert "sweep" not in told["base"][1]


def test_a_recipe_extends_one_beside_it_or_at_an_address(told: dict[str, tuple[int, str]]) -> None:
    code, text = told["child"]
    assert code == 0, text
    assert "steps: 20" in text and "clip: 1.0" in text and "seeds:\n- 3\n" in text
    assert told["mine"] == (0, told["base"][1].replace("steps: 10", "steps: 30"))
    code, text = told["teacher"]
    assert code == 3 and "teachers[0]" in text and "neither" not in text, text


def test_faults_name_the_file_and_what_the_user_says_is_allowed(told: dict[str, tuple[int, str]]) -> None:
    code, text = told["bad"]
    assert code == 3
    assert "2 faults" in text and "~/secret.txt found" in text and "wandb found; it would send data" in text
    assert told["allowed"][0] == 0, told["allowed"]
    code, text = told["broken"]
    assert code == 3 and "objectives[0].loss (line 3)" in text
    assert told["malformed"][0] == 2 and "no address of a recipe" in told["malformed"][1]
    assert told["missing"][0] == 5 and "alice/none" in told["missing"][1]


def test_a_named_list_of_changes_is_a_run_for_each(told: dict[str, tuple[int, str]]) -> None:
    code, text = told["sweep"]
    assert code == 0, text
    assert text.count("train for 5 steps") == text.count("train for 50 steps") == 1
    assert told["no sweep"][0] == 2 and "did you mean length?" in told["no sweep"][1]


def test_a_pulled_folder_is_the_recipe_and_one_that_asks_too_much_is_not_pulled(
    told: dict[str, tuple[int, str]],
) -> None:
    assert told["pull"][0] == 0, told["pull"]
    assert told["pulled"] == told["child"]
    assert told["pull again"][0] == 2 and "copy: exists" in told["pull again"][1]
    assert told["pull over"][0] == 0 and told["pull here"][0] == 2, (told["pull over"], told["pull here"])
    code, text = told["pull over others"]
    assert code == 5 and "holds tok/tokenizer.json, which is not of a recipe" in text
    assert told["pull bad"][0] == 3 and "2 faults" in told["pull bad"][1]


def test_recipes_are_compared_across_addresses(told: dict[str, tuple[int, str]]) -> None:
    assert told["same"] == (0, "no difference\n")
    assert told["diff"] == (
        1,
        "how\n  train.steps: 10 → 20\n  train.clip: 2.0 → 1.0\n  seeds: [1, 2] → [3]\n",
    )


def test_a_locked_recipe_is_refused_if_it_changed_and_keeps_its_commits_if_names_moved(
    told: dict[str, tuple[int, str]],
) -> None:
    assert told["lock"][0] == told["locked"][0] == 0, (told["lock"], told["locked"])
    code, text = told["changed"]
    assert code == 3 and "recipe: sha256:" in text
    code, text = told["unlocked"]
    assert code == 5 and "no recipe.lock beside it" in text
    code, text = told["moved"]
    assert code == 0 and "is used, as locked: stlm-kd recipe lock follows" in text, text
    assert told["relock"][0] == 0 and "models.student.tokenizer.commit: " in told["relock"][1]
    assert told["relocked"][0] == 0, told["relocked"]


def test_a_fetched_recipe_reads_its_own_folder_and_never_the_current_one(
    told: dict[str, tuple[int, str]],
) -> None:
    assert told["inside"][0] == told["inside locked"][0] == 0, (told["inside"], told["inside locked"])
    lock = told["data.lock"][1]
    assert hashlib.sha256(PUBLISHED.encode()).hexdigest() in lock and "data/train.txt" in lock
    assert "/recipes/" not in lock, "the lock names no folder of this machine"
    code, text = told["outside"]
    assert code != 0 and "data/here.txt: no such file or folder" in " ".join(text.split())
    assert told["asked"][0] == 0, told["asked"]
    code, text = told["folder here"]
    assert code == 3 and "student.tokenizer" in text and "'own/tok' found" in text
