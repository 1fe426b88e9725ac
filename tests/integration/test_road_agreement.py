"""The suite agreement in a recipe's run and in the command eval, on two small classifiers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.pipeline.stages.teacher_set import TEACHERS
from tests.support.recipes import faults
from tests.support.road import distilled, done, stlm_kd

TEACHER = """
task: classification
student: {tokenizer: {train: bpe, size: 400}, architecture: {model_type: bert, hidden_size: 16,
  intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2}}
data:
  train: {sample: sentiment, size: 100}
  labels: [negative, positive]
  context: 32
objectives: [{loss: labels}]
train: {steps: 2, effective_batch: 4}
tracking: []
"""

RECIPE = (
    TEACHER.replace("tracking", "teachers: [{name: larger, recipe: teacher.yaml}]\ntracking")
    .replace("  context", "  validation: {sample: sentiment, split: validation, size: 20}\n  context")
    .replace("{loss: labels}", "{loss: labels}, {loss: forward_kl}")
    + "eval: [classification, {suite: agreement, attributions: [integrated-gradients], examples: 3, "
    "steps: 4}]\ncontrols: [no-teacher]\n"
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(TEACHER)
    (tmp_path / "both.yaml").write_text(RECIPE)
    return tmp_path


def test_a_run_compares_its_students_with_its_teacher_and_so_do_eval_and_the_command(files: Path) -> None:
    run = distilled("both", output_dir=files / "runs")
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert [suite["suite"] for suite in rows["teacher larger"]["suites"][0]] == ["classification"]
    _, student = rows["distilled student"]["suites"][0]
    _, control = rows["no-teacher"]["suites"][0]
    metrics = {score["metric"] for score in student["scores"] if score["task"] == "larger"}
    assert metrics >= {"same_class", "kl", "js", "integrated_gradients_correlation"}
    explained = [set(one["report"]["beside"]["larger"]["explained"]) for one in (student, control)]
    assert explained[0] == explained[1] and len(explained[0]) == 3
    page = (run / "attributions.html").read_text()
    assert page.count('class="model"') == 9 and "distilled student" in page and "no-teacher" in page
    assert "larger integrated_gradients_correlation" in rows["no-teacher"]["estimates"]
    assert len(list((files / "runs/stages").glob("answers-*"))) == 1, "the teacher is asked once"
    suite = "{suite: agreement, attributions: [integrated-gradients], examples: 3, steps: 4, context: 32}"
    (again,) = done("eval", str(run), "--suite", suite)[str(run)]
    assert again["scores"] == student["scores"]
    model = json.loads((run / TEACHERS).read_text())["larger"]
    named = str((run / model).resolve())
    (other,) = done("eval", str(run), "--suite", suite, "--teacher", named)[str(run)]
    assert [s["value"] for s in other["scores"]] == [s["value"] for s in student["scores"]]
    command = done("agreement", named, str(run), "--set", "context=32")["agreements"][0]
    scores = {score["metric"]: score["value"] for score in student["scores"]}
    assert command["kl"]["value"] == pytest.approx(scores["kl"])
    untaught = ("objectives=[{loss: labels}]", "controls=[]", "eval=[classification]")
    compared_only = distilled("both", *untaught, output_dir=files / "runs")
    named_so = [row["name"] for row in json.loads((compared_only / "results.json").read_text())["rows"]]
    assert named_so == ["teacher larger", "student"]


def test_what_cannot_be_compared_is_said_before_it_is_trained(files: Path) -> None:
    alone = ("objectives=[{loss: labels}]", "controls=[]")
    for teachers in ("teachers=[]", "teachers=[{name: larger, cache: kept}]"):
        (found,) = faults(str(files / "both.yaml"), teachers, *alone)
        assert found.startswith("eval[1]: agreement compares a student with teachers that can run")
    result = stlm_kd("recipe", "validate", "both.yaml", "eval[1].attributions=[limes]")
    assert result.exit_code == 3 and "did you mean lime" in result.stderr
