"""docs/sharing-tutorial.md: its commands run, for an author and a reader with caches of their own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.main import get_command

import stlm_kd
from stlm_kd.cli.main import app
from tests.support.hub import USER, WRITE, Hub
from tests.support.paths import ROOT, installed_copy

PAGE = (ROOT / "docs" / "sharing-tutorial.md").read_text(encoding="utf-8").replace("alice/", f"{USER}/")
_, ALICE, BOB, SIGNED = PAGE.split("\n## ")
TAMPERED = "```\nstlm-kd recipe verify hf://tester/tiny --signed-by key.pub   # exit code 1\n```"
RUNNER = """
import json, subprocess, sys
from glob import glob
from typer.testing import CliRunner
from stlm_kd.cli.main import app
for line in sys.stdin:
    words = [glob("runs/tiny-*")[0] if word.startswith("runs/tiny-") else word for word in json.loads(line)]
    sys.argv = words
    if words[0] == "stlm-kd":
        ended = CliRunner().invoke(app, words[1:])
        print(json.dumps([ended.exit_code, ended.output]), flush=True)
    else:
        ended = subprocess.run(words, capture_output=True, text=True)
        print(json.dumps([ended.returncode, ended.stderr]), flush=True)
"""


@dataclass(frozen=True)
class Step:
    """A command with the exit code that its comment names, or a file with its content."""

    words: tuple[str, ...] = ()
    code: int = 0
    file: str = ""
    text: str = ""


def steps(section: str) -> Iterator[Step]:
    for kind, text in re.findall(r"```(yaml)?\n(.*?)```", section, re.DOTALL):
        first, _, rest = text.partition("\n")
        if kind:
            yield Step(file=first.removeprefix("# "), text=rest)
            continue
        for line in text.splitlines():
            command, _, comment = line.partition(" #")
            expected = re.search(r"exit code (\d+): they", comment) or re.search(r"exit code (\d+)$", comment)
            yield Step(tuple(shlex.split(command)), int(expected[1]) if expected else 0)


class World:
    """A Hub, and the homes of people who use it with the program as installed, without its repository."""

    def __init__(self, hub: Hub, folder: Path) -> None:
        self.hub, self.folder, self.program = hub, folder, installed_copy(folder / "program")

    def follow(self, section: str, who: str, **variables: str) -> dict[str, str]:
        """Run the commands of a section and write its files, in order; returns the output of each command.

        A command ends with the exit code of its comment, or 0.
        """
        home, told = self.folder / who, {}
        home.mkdir(exist_ok=True)
        own = {"HOME": str(home), "STLM_KD_CACHE": str(home / "own"), "HF_HUB_OFFLINE": "0", "COLUMNS": "200"}
        with subprocess.Popen(
            [sys.executable, "-c", RUNNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=home,
            env=self.hub.environment(home, **own, **variables, PYTHONPATH=str(self.program)),
            text=True,
            bufsize=1,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            for step in steps(section):
                if step.file:
                    (home / step.file).write_text(step.text)
                    continue
                print(json.dumps(step.words), file=process.stdin)
                command = shlex.join(step.words)
                code, told[command] = json.loads(process.stdout.readline())
                assert code == step.code, (command, told[command])
        return told


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with Hub() as hub:
        yield World(hub, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def alice(world: World) -> dict[str, str]:
    return world.follow(ALICE, "alice", HF_TOKEN=WRITE)


def output(told: dict[str, str], *words: str) -> str:
    """The output of the last command with some words."""
    return [text for command, text in told.items() if all(word in command for word in words)][-1]


def test_its_commands_have_these_options_and_its_recipes_are_valid(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    commands = 0
    for step in steps(PAGE):
        if step.file:
            (tmp_path / step.file).write_text(step.text)
        elif step.words[0] == "stlm-kd":
            command, words = get_command(app), list(step.words[1:])
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context("stlm-kd", words)
            commands += 1
    stlm_kd.plan(str(tmp_path / "tiny")).require()
    assert commands > 15


@pytest.mark.long
def test_a_recipe_is_shared_and_its_claim_verified(world: World, alice: dict[str, str]) -> None:
    assert ": consistent: its files agree with each other" in output(alice, "verify")
    assert "nothing was pushed" in output(alice, "--dry-run", "push")
    assert f"model: hf://{USER}/tiny-student@" in output(alice, "push")

    bob = world.follow(BOB, "bob")
    found = output(bob, "search")
    assert f"hf://{USER}/tiny" in found and "A tiny student of a tiny teacher" in found
    assert ": rescored: " in output(bob, "--rescore")
    again = output(bob, "--rerun")
    assert ": reproduced: " in again and again.count("to the same weights, bit for bit") == 4
    homes = world.folder / "alice", world.folder / "bob"
    assert json.loads((homes[1] / "verification.json").read_text())["rung"] == "reproduced"
    weights = [sorted((home / "runs").glob("tiny-*/students/*/*/model/*.safetensors")) for home in homes]
    assert len(weights[0]) == 4
    assert [file.read_bytes() for file in weights[0]] == [file.read_bytes() for file in weights[1]]
    for name in ("recipe.yaml", "teacher.yaml"):
        written, pulled = (home / "tiny" / name for home in homes)
        assert written.read_bytes() == pulled.read_bytes()


@pytest.mark.long
@pytest.mark.skipif(find_spec("model_signing") is None, reason="needs pip install 'stlm-kd[signing]'")
def test_a_signed_recipe_is_verified_and_a_changed_one_refuted(world: World, alice: dict[str, str]) -> None:
    told = world.follow(SIGNED, "alice", HF_TOKEN=WRITE)
    assert "the signature of all files but the card, by the owner of key.pub" in output(told, "--signed-by")
    repo = world.hub.repos["model", f"{USER}/tiny"]
    files = {path: blob.content for path, blob in repo.commits[repo.branches["main"]].files.items()}
    recipe = files["recipe.yaml"].replace(b"A tiny student", b"A good student")
    world.hub.add("model", f"{USER}/tiny", {**files, "recipe.yaml": recipe})
    assert ": REFUTED" in output(world.follow(TAMPERED, "alice"), "--signed-by")
