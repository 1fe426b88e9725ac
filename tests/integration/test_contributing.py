"""CONTRIBUTING.md: every block is written to its file, and every command runs."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.registries import unchanged_registries
from tests.support.road import stlm_kd

BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M | re.S)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
FILES = {
    text.split("\n", 1)[0].removeprefix("# "): text for kind, text in BLOCKS if kind in ("python", "yaml")
}
DISTIL = [line for line in COMMANDS if " distill " in line and "--import" in line]
SHOWN = {
    "total_variation": '"total_variation": 0.',
    "next_ids": '"diito@a.teacher_effect/layer',
    "surest": '"teacher_weight/a"',
    "first_piece": '"labels"',
    "top_k": '"labels"',
    "stablelm": '"hint@a"',
}
"""By module, a part of the metrics that shows it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files, and one with the stages that all commands share."""
    folder = tmp_path_factory.mktemp("contributing")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(place)
    monkeypatch.setenv("STLM_KD_IMPORT", "")
    monkeypatch.setattr(sys, "path", [str(place), *sys.path])
    with unchanged_registries():
        yield
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def test_each_kind_of_extension_has_a_file_and_its_commands() -> None:
    names = [name for name in FILES if name.endswith(".py") and not name.startswith("test_")]
    for name in names:
        module = name.removesuffix(".py")
        own = [line for line in COMMANDS if f"--import {module} " in line]
        assert [line.split()[3] for line in own] == ["recipe", "distill"], name
    assert len(names) == len(SHOWN) and len(DISTIL) == len(SHOWN)
    registered = {word for name in names for word in re.findall(r"stlm_kd\.(register_\w+)", FILES[name])}
    import stlm_kd as package

    assert registered == {name for name in package.__all__ if name.startswith("register_")}


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in DISTIL])
def test_a_command_runs(line: str) -> None:
    result = stlm_kd(*shlex.split(line)[1:])
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"


@pytest.mark.parametrize("line", DISTIL)
def test_a_training_uses_the_extension(line: str) -> None:
    _, _, module, *words = shlex.split(line)
    result = stlm_kd("--import", module, *words, "train.log_every=1", "--json")
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    run = Path(json.loads(result.stdout)["folder"])
    metrics = (run / "students/student/seed-1/metrics.jsonl").read_text("utf-8")
    assert SHOWN[module] in metrics
    if module == "top_k":
        assert '"top-k"' in (run / "results.json").read_text("utf-8")


def test_the_examples_of_tests_pass() -> None:
    tests = [name.removesuffix(".py") for name in FILES if name.startswith("test_")]
    assert tests
    for name in tests:
        module = importlib.import_module(name)
        for function in vars(module).values():
            if getattr(function, "__name__", "").startswith("test_"):
                function()
