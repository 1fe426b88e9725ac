"""Scores of teachers by the command: one measure in all tables, and a warning where a teacher is weak."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stlm_kd.artifacts.hashing import known_sha256
from stlm_kd.pipeline.stages.digests import known_stages
from stlm_kd.recipe import load
from stlm_kd.recipe.lock import read_lock
from tests.support.road import GPT2, TEXT, distilled, done


def results_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def bits_per_byte(suites: list[dict[str, Any]]) -> float:
    (value,) = (
        score["value"]
        for suite in suites
        for score in suite["scores"]
        if suite["suite"] == "perplexity" and score["metric"] == "bits_per_byte"
    )
    assert isinstance(value, float)
    return value


def test_an_adaptation_and_the_perplexity_suite_report_the_same_bits_per_byte(
    place: Path, tmp_path: Path
) -> None:
    """Of the teacher before and after, on the same held-out text, to the last digit."""
    run = Path(done("adapt-teacher", "-r", "adapts.yaml", "--output-dir", str(tmp_path))["folder"])
    results = results_of(run)
    assert set(results["adaptations"]) == {"g", "q"}
    lock = read_lock((run / "recipe.lock").read_text())
    assert lock.stages.keys() == {"teachers.g.adapted", "teachers.q.adapted"}
    assert known_stages(load(str(run), is_stored=True)) == lock.stages, "known before anything is trained"
    files = [run / "teachers" / name / "model.safetensors" for name in "gq"]
    assert [*lock.outputs.values()] == [f"sha256:{known_sha256(file)}" for file in files]
    for name, report in results["adaptations"].items():
        assert report["before"] != report["trained"]
        for key, row in (("before", name), ("trained", f"{name}, adapted")):
            assert bits_per_byte(results["suites"][row]) == report[key]
    for folder, window, same in (
        (str(run / "teachers" / "g"), 64, True),
        ("gpt2", 64, False),
        (str(run / "teachers" / "g"), 16, False),
    ):
        suite = f"{{suite: perplexity, window: {window}}}"
        scores = done("eval", folder, "--suite", suite, "--data", "valid.txt", "--output-dir", str(tmp_path))
        (suites,) = scores.values()
        value = bits_per_byte(suites)
        assert (value == results["adaptations"]["g"]["trained"]) == same and math.isfinite(value)


@pytest.mark.parametrize("is_weak", [True, False])
def test_that_a_teacher_is_no_better_than_the_control_is_the_first_remark(
    place: Path, tmp_path: Path, is_weak: bool
) -> None:
    """A random teacher beside a control of 20 steps; one of 60 steps beside a control of a single step."""
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(
        f"task: clm\nstudent: {{tokenizer: own, architecture: {GPT2}}}\n{TEXT}"
        "objectives: [{loss: labels}]\ntracking: []\n"
        "train: {steps: 60, effective_batch: 8, learning_rate: 1e-2}\n"
    )
    source = "model: same" if is_weak else f"recipe: {teacher}"
    run = distilled(
        "taught",
        f"teachers=[{{name: a, {source}}}]",
        "objectives=[{loss: labels}, {loss: forward_kl}]",
        f"train.steps={20 if is_weak else 1}",
        "train.validate_every=null",
        "controls=[no-teacher]",
        "eval=[perplexity]",
        output_dir=tmp_path,
    )
    remarks = results_of(run)["remarks"]
    words = "is not better than no-teacher"
    assert [words in remark for remark in remarks] == [is_weak, *[False] * (len(remarks) - 1)]
    assert len(remarks) > 1
    table = (run / "table.txt").read_text()
    assert [table.index(remark) for remark in remarks] == sorted(table.index(remark) for remark in remarks)
    if is_weak:
        assert remarks[0].startswith("warning: teacher a (")
