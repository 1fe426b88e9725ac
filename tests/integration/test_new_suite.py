"""A new suite is one file: recipes name it, check its options, score with it and keep the scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SUITE = '''
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from stlm_kd.artifacts.results import Score, SuiteResult
from stlm_kd.eval import register_suite


def words():
    return Path(__file__).with_name("words.txt").read_text().split()


@register_suite("known-words", tasks=["clm"], identity=lambda options: words())
def known_words(model, tokenizer, documents, /, *, shortest: Annotated[int, Gt(0)] = 1) -> SuiteResult:
    """The share of the held-out words of some length that are in words.txt."""
    found = [word for text in documents for word in text.split() if len(word) >= shortest]
    share = sum(word in words() for word in found) / len(found)
    return SuiteResult("known-words", (Score("text", "share", share, None, len(found)),))
'''

PROBE = """
import json, sys
from pathlib import Path

import known_words
from stlm_kd.errors import StlmKdError
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.scoring.evaluate import evaluate
from stlm_kd.pipeline.stages.score import kept_scores
from stlm_kd.recipe import load
from stlm_kd.recipe.suites import suites

folder = Path(sys.argv[1])


def fault(name, *changes):
    try:
        load(f"{name}.yaml", changes)
    except StlmKdError as error:
        return str(error)


def scored(words, *changes):
    (folder / "words.txt").write_text(words)
    (result,) = kept_scores(load("plain.yaml", changes), "same", RunContext(folder))
    return result.score("text", "share").value, len(list(folder.glob("stages/eval-*/stage.json")))


held = folder / "held.txt"
held.write_text("a dog sees the dog\\n")
text = f"data.validation={held}"
entry = "eval=[known-words]"
print(json.dumps({
    "scores": [scored(words, entry, text) for words in ("a", "dog", "a")],
    "option": scored("a", "eval=[{suite: known-words, shortest: 4}]", text),
    "other text": scored("a", entry, "data.validation=valid.txt")[1],
    "faults": [
        fault("plain", "eval=[{suite: known-words, shortest: 0}]"),
        fault("filling", entry),
        fault("plain", entry, "data.validation=null"),
        fault("plain", "eval=[known-word]"),
    ],
    "command": evaluate(
        ["same"], suites=suites(["known-words"], options={}), data=[str(held)], text=None, label=None,
        trust_remote_code=False,
    )["same"][0].score("text", "share").value,
}))
"""


@pytest.fixture
def found(place: Path, tmp_path: Path) -> dict[str, object]:
    """What recipes and commands find where the module of the suite is imported."""
    (tmp_path / "known_words.py").write_text(SUITE)
    (tmp_path / "probe.py").write_text(PROBE)
    command = [sys.executable, str(tmp_path / "probe.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_a_suite_in_a_file_of_its_own_is_scored_kept_and_checked(found: dict[str, object]) -> None:
    assert found["scores"] == [[1 / 5, 1], [2 / 5, 2], [1 / 5, 2]], (
        "kept by the words that its identity names"
    )
    assert found["option"] == [0.0, 3] and found["other text"] == 4
    assert found["command"] == 1 / 5
    options, task, text, name = map(str, found["faults"])  # type: ignore[call-overload]  # JSON
    assert "eval[0].shortest" in options and "0 found; expected more than 0" in options
    assert "known-words is for task clm; expected for mlm: " in task
    assert "known-words is measured on data.validation, which is not given" in text
    assert "'known-word' is not a known suite (did you mean known-words?)" in name
