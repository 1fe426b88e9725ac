"""The suite interchange: in a recipe's run, in the command eval, and on labelled examples by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stlm_kd.data.labelled.examples import LabelledSource, read_examples
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.eval.interchange.config import PairConfig
from stlm_kd.eval.interchange.pairs import draw_pairs
from stlm_kd.eval.interchange.suite import JUDGED, AlignedTeacher, interchange
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.layer_alignment import Alignment
from tests.support.classes import BERT, LABELS
from tests.support.recipes import faults
from tests.support.road import build, distilled, done, stlm_kd
from tests.unit.distillation.test_counterfactuals import kl, runs

RECIPE = """
task: clm
student: {tokenizer: own, architecture: {model_type: llama, hidden_size: 16, intermediate_size: 32,
  num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1}}
teachers: [{name: a, model: same}, {name: b, model: padded}]
data: {train: train.txt, validation: valid.txt, context: 64}
objectives: [{loss: labels}, {loss: diito, exclude_last: true}]
train: {steps: 2, effective_batch: 4, log_every: 1}
eval: [{suite: interchange, rows: 8, context: 16}]
controls: [no-teacher]
tracking: []
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside")
    build(folder)
    (folder / "diito.yaml").write_text(RECIPE)
    return folder


def test_a_run_scores_its_students_beside_its_teachers_and_so_does_eval(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(world)
    run = distilled("diito", output_dir=tmp_path)
    rows = {row["name"]: row for row in json.loads((run / "results.json").read_text())["rows"]}
    assert [rows[f"teacher {name}"]["suites"] for name in "ab"] == [[[]], [[]]]
    (found,) = rows["distilled student"]["suites"][0]
    (control,) = rows["no-teacher"]["suites"][0]
    asked = [(s["task"], s["metric"]) for s in found["scores"] if s["part_of"] is None]
    assert sorted(asked) == sorted((name, metric) for name in "ab" for metric in JUDGED)
    assert found["report"]["a"]["alignment"] == {"0": [0]}  # as the objective says: the last is left out
    assert {id for task, id, _, _ in found["examples"] if task == "b"} == {
        id for task, id, _, _ in control["examples"] if task == "b"
    }
    assert found["scores"] != control["scores"] and "a agreement" in (run / "table.txt").read_text()
    measured = [
        json.loads(line) for line in (run / "students/student/seed-1/metrics.jsonl").read_text().splitlines()
    ]
    names = {name for line in measured if line["kind"] == "step" for name in line["measures"]}
    assert {"diito.agreement/layer0", "diito.student_effect/layer0"} <= names
    suite = "{suite: interchange, rows: 8, context: 16}"
    (again,) = done("eval", str(run), "--suite", suite)[str(run)]
    assert again["scores"] == found["scores"]
    (full,) = done("eval", str(run), "--suite", suite, "--teacher", "padded")[str(run)]
    assert full["report"]["padded"]["alignment"] == {"0": [0], "1": [1]}
    few = ["--set", "rows=8", "--set", "context=16"]
    command = done("interchange", "padded", str(run), *few)["students"][str(run)]
    scores = {(s["task"].removeprefix("padded, "), s["metric"]): s["value"] for s in full["scores"]}
    assert scores == {
        ("padded" if s["task"] == "all layers" and s["metric"] in JUDGED else s["task"], s["metric"]): s[
            "value"
        ]
        for s in command["scores"]
    }


def test_a_model_of_no_run_needs_a_teacher_of_its_vocabulary(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    words = ["eval", "same", "--suite", "interchange", "--data", "valid.txt"]
    alone = stlm_kd(*words)
    assert alone.exit_code == 2 and "give --teacher MODEL" in alone.stderr
    foreign = stlm_kd(*words, "--teacher", "gpt2")
    assert foreign.exit_code == 3 and "different vocabularies" in foreign.stderr
    long = stlm_kd(*words[:3], "{suite: interchange, context: 65}", *words[4:], "--teacher", "same")
    assert long.exit_code == 2 and "has 64 positions" in long.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "teachers=[]",
            "interchange compares a student with teachers that can run; this recipe lacks one of them",
        ),
        ("data.validation=null", "interchange is measured on data.validation"),
    ],
)
def test_recipes_without_teachers_or_held_out_text_are_refused(
    change: str, message: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    assert any(message in line for line in faults("diito.yaml", change, "objectives=[{loss: labels}]"))


def test_classifiers_are_compared_example_by_example() -> None:
    examples = read_examples(LabelledSource(sample="sentiment", split="validation", size=20), labels=LABELS)
    tokenizer = train_tokenizer([text for (text,) in examples.texts], size=300, masked=True)
    student, teacher = (
        classifier_from_fields(
            {**BERT, "num_hidden_layers": layers, "initializer_range": 0.5}, tokenizer, labels=LABELS,
            context=32, seed=layers,
        ).double().eval()
        for layers in (2, 4)
    )  # fmt: skip
    alignment: Alignment = {0: (0, 1), 1: (2, 3)}
    asked = PairConfig(rows=12, seed=3)
    taught = {"t": AlignedTeacher(teacher, alignment)}
    result = interchange(student, tokenizer, examples, taught, rows=12, seed=3, context=32)
    same, changed, effects = [], [], []
    ids: list[str] = []
    for one in draw_pairs(examples, tokenizer, asked, context=32, task=None):
        ids += [examples.ids[number] for number in one.batch.example_ids.tolist()]
        for layer, theirs in alignment.items():
            plan = one.at(layer, theirs, torch.device("cpu"))
            with torch.no_grad():
                before, after = runs(teacher, one.batch, plan, theirs)
                own_before, own_after = runs(student, one.batch, plan, (layer,))
            same += (after.argmax(-1) == own_after.argmax(-1)).tolist()
            changed += (after.argmax(-1) != before.argmax(-1)).tolist()
            effects.append(kl(own_after, own_before))
    assert len(ids) == 12 and {row.id for row in result.examples if row.metric == "agreement"} == set(ids)
    assert result.score("t", "agreement").value == pytest.approx(np.mean(same))
    accuracy = np.mean(np.array(same)[np.array(changed)])
    assert result.score("t", "interchange_accuracy").value == pytest.approx(accuracy)
    told = "other-example states at consecutive positions, 12 rows of up to 32 tokens, seed 3"
    assert told in result.notes[0] and result.report["interventions"] == told
    few = result.score("t", "interchange_accuracy").examples
    counted = f"over the {few} of 12 rows in which the teacher's top-1 prediction changes"
    assert any(counted in note for note in result.notes) == (few < 12)
    assert result.score("t, all layers", "student_effect").value == pytest.approx(np.mean(effects), rel=1e-5)
