"""Whatever a model's configuration, tokenizer or weights say, the answer is a model or one message."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.data.tokenizers import ids_from_start, load_tokenizer, train_tokenizer
from stlm_kd.errors import ModelError
from stlm_kd.models.load import load_language_model
from tests.support.damaged_models import KINDS, build, prepared
from tests.support.mutations import TIMES, wrong_answers

FEW = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_changed_at_random(kind: str, models: Path, tmp_path: Path) -> None:
    assert wrong_answers(lambda number: prepared(kind, number, models, tmp_path / "model"), 0, FEW) == []


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_was_changed_in_many_ways(kind: str, models: Path, tmp_path: Path) -> None:
    """In child processes, one after the other: whatever ends one, even an abort in Rust, fails its case."""
    wrong, number, end = [], FEW, 350 * TIMES
    while number < end:
        words = [kind, str(number), str(end), str(models), str(tmp_path / "model")]
        command = [sys.executable, "-m", "tests.support.damaged_models", *words]
        done = subprocess.run(command, capture_output=True, check=False, timeout=600 * TIMES)
        given = ""
        for line in filter(lambda line: line.startswith(b"["), done.stdout.splitlines()):
            number, word, what = json.loads(line)
            given = what if word == "begins" else given
            if word == "wrong":
                wrong.append(f"case {number}: {what}\n{given}")
        if done.returncode:
            wrong.append(
                f"case {number} ended its process: {done.returncode}\n{given}\n{done.stderr[-500:]!r}"
            )
        number += 1
    assert wrong == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"pattern": {"Regex": "(x+x+)+y"}}, "retry-limit", id="a pattern that never ends"),
        pytest.param({"pattern": {"Regex": "(("}}, "cannot be read as a tokenizer", id="no pattern"),
    ],
)
def test_a_regular_expression_of_a_tokenizer_is_named_when_it_fails(
    change: dict[str, object],
    message: str,
    models: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A panic in Rust, which is no ``Exception``, and whose own lines are not shown."""
    shutil.copytree(models / "gpt2", tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    steps = json.loads(file.read_text("utf-8"))
    steps["pre_tokenizer"] = {"type": "Split", "behavior": "Isolated", "invert": False, **change}
    file.write_text(json.dumps(steps), "utf-8")
    with pytest.raises(ModelError, match=message) as caught:
        ids_from_start(load_tokenizer(str(tmp_path / "model")), ["x" * 60])
    assert caught.value.__cause__ is not None
    assert str(tmp_path / "model") in str(caught.value)
    assert sys.platform != "linux" or capfd.readouterr().err == ""


def test_sizes_are_refused_before_anything_is_allocated(models: Path, tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> str:
        folder = tmp_path / name
        shutil.copytree(models / "gpt2", folder)
        file = folder / name
        content = json.loads(file.read_text("utf-8"))
        change(content)
        file.write_text(json.dumps(content), "utf-8")
        return str(folder)

    huge = changed("config.json", lambda content: content.update(n_embd=2**20, n_inner=2**22))
    with pytest.raises(ModelError, match="parameters described, but its weights are files of"):
        load_language_model(huge, "clm")
    far = changed("tokenizer.json", lambda content: content["model"]["vocab"].update(x=4_000_000_000))
    with pytest.raises(ModelError, match="id 4,000,000,000 found; expected at most"):
        load_tokenizer(far)
    with pytest.raises(ModelError, match="1,000,000,000 found; expected at most 1,000,000"):
        train_tokenizer(["the cat"], size=10**9)
