"""Classifiers and models of numbers by the command: taught, adapted, scored, resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import AlbertConfig, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.classes import LABELS, build
from tests.support.road import distilled, done, started, stlm_kd, student, weights

STILL = ("train.learning_rate=1e-30", "train.weight_decay=0", "train.validate_every=null")
"""A training that leaves the weights as they were."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small world of ``tests/support/classes.py``."""
    folder = tmp_path_factory.mktemp("classes")
    build(folder)
    return folder


@pytest.fixture(autouse=True)
def _at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the world's folder; with one thread, as in processes that are started."""
    monkeypatch.chdir(world)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(world: Path) -> Path:
    """The run of the recipe ``whole``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        return (world / distilled("whole", output_dir=Path("runs"))).resolve()


def results(run: Path) -> dict[str, Any]:
    found = json.loads((run / "results.json").read_text())
    assert isinstance(found, dict)
    return found


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text(encoding="utf-8").splitlines()]


def trained_steps(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (student(run) / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "step"]


@torch.no_grad()
def told(folder: Path | str, texts: list[str], *, context: int = 32) -> Tensor:
    """A model's logits for texts encoded by its own tokenizer, one by one, with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    said = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=context, return_tensors="pt")
        names = {"input_ids", "attention_mask", "token_type_ids"} & set(inputs)
        said.append(model(**{name: inputs[name] for name in names}).logits[0])
    return torch.stack(said).double()


def of_all(*dropouts: str) -> list[str]:
    """Changes by which a recipe takes one step over all examples, without dropout, and stays as it is."""
    without = [f"student.architecture.{name}=0.0" for name in dropouts]
    return ["train.steps=1", "train.effective_batch=200", "train.micro_batch=40", *STILL, *without]


def divergence(teacher_NC: Tensor, student_NC: Tensor, temperature: float = 1.0) -> float:
    """T² KL(teacher || student), averaged over texts."""
    p, q = ((logits / temperature).log_softmax(-1) for logits in (teacher_NC, student_NC))
    return float(temperature**2 * functional.kl_div(q, p, log_target=True, reduction="none").sum(-1).mean())


def test_the_table_has_the_scores_of_classes_and_compares_them(whole: Path) -> None:
    rows = {row["name"]: row for row in results(whole)["rows"]}
    assert list(rows) == ["teacher t", "distilled student", "no-teacher"]
    for row in rows.values():
        assert set(row["estimates"]) == {"accuracy", "f1", "macro_f1", "matthews"}
    table = (whole / "table.txt").read_text()
    assert "accuracy ↑" in table
    assert "accuracy: distilled student - no-teacher = " in table


def test_each_step_has_the_weights_of_its_moment_and_terms_that_rest_are_left_out(whole: Path) -> None:
    """Of six steps the shares are 0, 1/6 … 5/6."""
    hints, maps = [1.0, 1.0, 0.0, 0.0, 2.0, 2.0], [max(0.0, 1 - i / 6 / 0.8) for i in range(6)]
    for line, hint, attention in zip(trained_steps(whole), hints, maps, strict=True):
        losses = line["losses"]
        factors = {"labels": 0.5, "forward_kl": 0.5, "hint": hint, "attention_cross_entropy": attention}
        assert set(losses) == {name for name, factor in factors.items() if factor}
        total = sum(factors[name] * value for name, value in losses.items())
        assert line["loss"] == pytest.approx(total, rel=1e-6)


def test_the_exported_model_has_classes_and_no_projection(whole: Path) -> None:
    folder = student(whole) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    names = set(load_file(folder / "model.safetensors"))
    assert not [name for name in names if "projection" in name]
    assert "classifier.weight" in names


def test_the_scores_are_those_of_the_models_own_predictions(whole: Path) -> None:
    rows = rows_of("valid.jsonl")
    logits = told(student(whole) / "model", [row["sentence"] for row in rows])
    right = logits.argmax(-1) == torch.tensor([LABELS.index(row["label"]) for row in rows])
    (found,) = done("eval", str(whole), "--suite", "classification")[str(whole)]
    scores = {score["metric"]: score["value"] for score in found["scores"]}
    assert scores["accuracy"] == pytest.approx(right.double().mean().item())
    recorded = results(whole)["rows"][1]["suites"][0][0]
    assert recorded["scores"] == found["scores"]


def test_files_are_scored_by_their_columns(whole: Path, tmp_path: Path) -> None:
    rows = [{"body": row["sentence"], "kind": row["label"]} for row in rows_of("valid.jsonl")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["eval", str(whole), "--suite", "classification", "--data", str(tmp_path / "rows.jsonl")]
    (found,) = done(*words, "--text", "body", "--label", "kind")[str(whole)]
    assert found["scores"] == results(whole)["rows"][1]["suites"][0][0]["scores"]
    result = stlm_kd(*words, "--text", "body", "--label", "sort")
    assert result.exit_code == 1 and "no column sort; found: body, kind" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "regression", "--label", "strength"], "regression does not score; use classification"),
        (["--suite", "classification", "--suite", "perplexity"], "score different models; run eval for each"),
        (["--suite", "classification", "--label", "strength"], "0.51 found, expected the name or number"),
    ],
)
def test_what_a_classifier_is_not_scored_by_is_said(whole: Path, words: list[str], message: str) -> None:
    result = stlm_kd("eval", str(whole), "--data", "valid.jsonl", *words)
    assert result.exit_code not in (0, 70) and message in result.stderr


def test_a_classifier_continues_no_text(whole: Path) -> None:
    result = stlm_kd("generate", str(whole), "--prompt", "The")
    assert result.exit_code == 3
    assert "is a classifier, which does not continue text" in result.stderr
    assert "--suite classification" in result.stderr


def test_the_same_command_again_trains_nothing_and_another_schedule_does(whole: Path) -> None:
    before = {path.name for path in (whole.parent / "stages").glob("model-*")}
    distilled("whole", output_dir=Path("runs"))
    assert {path.name for path in (whole.parent / "stages").glob("model-*")} == before
    distilled("whole", "objectives[2].weight.at=[0.3, 0.7]", "seeds=[1]", output_dir=Path("runs"))
    assert len({path.name for path in (whole.parent / "stages").glob("model-*")} - before) == 1


def test_a_generated_task_is_learned_with_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    run = distilled("sample", output_dir=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(student(run) / "model")
    assert len(tokenizer) == 320
    (row,) = results(run)["rows"]
    assert row["suites"][0][0]["scores"][0]["examples"] == 40
    config = json.loads((student(run) / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "0", "1": "1"}


def test_a_teacher_reads_by_its_own_tokenizer_and_is_compared_by_its_classes(tmp_path: Path) -> None:
    """Of a student that stays as it is, the loss of a step over all examples is that of its saved weights."""
    run = distilled("other-reader", *of_all("dropout", "attention_dropout"), output_dir=tmp_path)
    texts = [row["sentence"] for row in rows_of("train.jsonl")]
    teacher, own = told("roberta", texts), told(student(run) / "model", texts)
    (line,) = trained_steps(run)
    assert line["losses"]["forward_kl"] == pytest.approx(divergence(teacher, own, 2.0), rel=1e-3)
    config = json.loads((student(run) / "model" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    assert line["losses"]["forward_kl"] > 1e-3


def test_a_student_learns_from_a_teacher_that_reads_otherwise(tmp_path: Path) -> None:
    run = distilled("other-reader", "train.steps=30", "train.learning_rate=1e-2", output_dir=tmp_path)
    losses = [line["losses"]["forward_kl"] for line in trained_steps(run)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("loss", ["hint", "cosine", "attention_mse"])
def test_what_looks_into_a_teacher_of_another_vocabulary_is_refused(loss: str, tmp_path: Path) -> None:
    words = ["distill", "-r", "other-reader.yaml", f"objectives=[{{loss: {loss}}}]"]
    result = stlm_kd(*words, "--output-dir", str(tmp_path))
    assert result.exit_code == 3
    assert "teachers[0] (r): its vocabulary (340 tokens) is not the student's (300 tokens)" in result.stderr
    assert "add adapt: {" in result.stderr


@pytest.mark.parametrize(
    ("recipe", "objective", "message"),
    [
        (
            "layers",
            "{loss: hint, sites: {0: 7}}",
            "objectives[0].sites: teacher layers 7 given, but the teacher",
        ),
        (
            "layers",
            "{loss: attention_mse, sites: {3: 0}}",
            "objectives[0].sites: student layers 3 given, but",
        ),
        (
            "whole",
            "{loss: hint, sites: late}",
            "late means the two layers below the last",
        ),
        (
            "whole",
            "{loss: hint, projection: none}",
            "none, but the student's hidden size is 16",
        ),
        (
            "layers",
            "{loss: hint, sites: {0: 3, 1: 1}}",
            "student layer 1, above it, has 1; give later student",
        ),
    ],
)
def test_sites_and_widths_that_do_not_fit_are_refused_by_configurations_alone(
    recipe: str, objective: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*given: object, **named: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("stlm_kd.pipeline.builders.models.load_classifier", loaded)
    words = ["distill", "-r", f"{recipe}.yaml", f"objectives=[{objective}]", "--output-dir", str(tmp_path)]
    result = stlm_kd(*words)
    assert result.exit_code == 3, result.output
    assert message in result.stderr


def test_a_family_whose_parts_are_not_known_is_refused_where_it_is_looked_into(tmp_path: Path) -> None:
    """By its configuration: it has no weights."""
    config = AlbertConfig(vocab_size=300, hidden_size=24, num_attention_heads=4, num_hidden_layers=2)
    config.architectures = ["AlbertForSequenceClassification"]
    config.save_pretrained(tmp_path / "albert")
    AutoTokenizer.from_pretrained("own").save_pretrained(tmp_path / "albert")
    teachers = f"teachers=[{{name: t, model: {tmp_path}/albert}}]"
    result = stlm_kd("distill", "-r", "whole.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 3
    for place in ("objectives[2].loss: hint", "objectives[3].loss: attention_cross_entropy"):
        assert (
            f"{place} does not support these models: teacher t is a albert; supported: gpt2, "
            in result.stderr
        )


def test_a_student_of_some_of_a_classifiers_layers_begins_as_they_are(tmp_path: Path) -> None:
    run = distilled("layers", "train.steps=1", *STILL, output_dir=tmp_path)
    teacher, own = load_file("bert/model.safetensors"), load_file(student(run) / "model/model.safetensors")
    for mine, theirs in (
        ("distilbert.embeddings.word_embeddings.weight", "bert.embeddings.word_embeddings.weight"),
        ("distilbert.transformer.layer.0.ffn.lin1.weight", "bert.encoder.layer.0.intermediate.dense.weight"),
        ("distilbert.transformer.layer.1.ffn.lin1.weight", "bert.encoder.layer.2.intermediate.dense.weight"),
        ("pre_classifier.weight", "bert.pooler.dense.weight"),
        ("classifier.weight", "classifier.weight"),
    ):
        assert torch.equal(own[mine], teacher[theirs]), mine


@pytest.fixture(scope="module")
def adapted(world: Path) -> Path:
    """The run of ``adapts``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        return (
            world / done("adapt-teacher", "-r", "adapts.yaml", "--output-dir", "adapted")["folder"]
        ).resolve()


def report_of(run: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the report of the one adaptation."""
    (folder,) = run.parent.glob("stages/adapted-*")
    return folder / "model", json.loads((folder / "report.json").read_text())


def test_an_adapted_classifier_keeps_what_it_said_of_classes(tmp_path: Path) -> None:
    """Its divergence from itself, on held-out texts, falls far below that of the untrained new rows.

    The held-out labels are its own classes: of another's the untrained rows may have the least loss, and the
    state before the first step is kept.
    """
    rows = rows_of("valid.jsonl")
    texts = [row["sentence"] for row in rows]
    before = told("roberta", texts)
    own = [
        {**row, "label": LABELS[place]} for row, place in zip(rows, before.argmax(-1).tolist(), strict=True)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    words = ["adapt-teacher", "-r", "adapts.yaml", f"data.validation={tmp_path / 'own.jsonl'}", "eval=[]"]
    gaps = []
    for name, changes in (("new", ["teachers[0].adapt.learning_rate=1e-30"]), ("trained", [])):
        run = Path(done(*words, *changes, "--output-dir", str(tmp_path / name))["folder"])
        gaps.append(divergence(before, told(report_of(run)[0], texts)))
    assert 0 < gaps[1] < 0.6 * gaps[0]


def test_only_the_embedding_of_an_adapted_classifier_is_new(adapted: Path) -> None:
    folder, report = report_of(adapted)
    before, after = load_file("roberta/model.safetensors"), load_file(folder / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"roberta.embeddings.word_embeddings.weight"}
    assert (report["old_vocabulary"], report["new_vocabulary"]) == (340, 300)
    assert report["trained_parameters"] == after[changed.pop()].numel()


def test_the_report_of_an_adaptation_is_in_accuracy(adapted: Path) -> None:
    folder, report = report_of(adapted)
    assert (report["task"], report["held_out"]) == ("classification", 60)
    rows = rows_of("valid.jsonl")
    right = torch.tensor([LABELS.index(row["label"]) for row in rows])
    texts = [row["sentence"] for row in rows]
    for key, place in (("before", "roberta"), ("trained", folder)):
        accuracy = (told(place, texts).argmax(-1) == right).double().mean().item()
        assert report[key] == pytest.approx(accuracy)
    scores = json.loads((adapted / "results.json").read_text())
    assert "accuracy" in json.dumps(scores)


def test_an_adapted_classifier_is_looked_into(tmp_path: Path) -> None:
    teachers = "teachers=[{name: r, model: roberta, adapt: {tokens: 4k, effective_batch: 16, init: mean}}]"
    run = distilled("other-reader", teachers, "objectives=[{loss: hint, sites: full}]", output_dir=tmp_path)
    assert [set(line["losses"]) for line in trained_steps(run)] == [{"hint", "labels"}] * 6


def test_a_model_of_numbers_is_trained_and_scored(tmp_path: Path) -> None:
    run = distilled("numbers", "train.steps=20", output_dir=tmp_path)
    folder = student(run) / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
    losses = [line["losses"] for line in trained_steps(run)]
    assert set(losses[0]) == {"labels", "logit_mse", "normalised_mse"}
    assert sum(step["labels"] for step in losses[-4:]) < sum(step["labels"] for step in losses[:4])
    rows = rows_of("valid.jsonl")
    said = told(folder, [row["sentence"] for row in rows])[:, 0]
    strength = torch.tensor([row["strength"] for row in rows], dtype=torch.float64)
    scores = results(run)["rows"][1]["estimates"]
    pearson = torch.corrcoef(torch.stack([said, strength]))[0, 1].item()
    assert scores["pearson"]["mean"] == pytest.approx(pearson, abs=1e-4)
    missed = (said - strength).square().mean().item()
    assert scores["mean_squared_error"]["mean"] == pytest.approx(missed, rel=1e-4)


def test_the_loss_of_numbers_is_that_of_the_saved_weights(tmp_path: Path) -> None:
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    run = distilled("numbers", *of_all(*dropouts), output_dir=tmp_path)
    rows = rows_of("train.jsonl")
    texts = [row["sentence"] for row in rows]
    own, teacher = told(student(run) / "model", texts)[:, 0], told("number", texts)[:, 0]
    strength = torch.tensor([row["strength"] for row in rows], dtype=torch.float64)
    losses = trained_steps(run)[0]["losses"]
    assert losses["labels"] == pytest.approx((own - strength).square().mean().item(), rel=1e-4)
    assert losses["logit_mse"] == pytest.approx((own - teacher).square().mean().item(), rel=1e-4)


def killed_after_a_checkpoint(words: list[str], output_dir: Path) -> list[Path]:
    """Start a command, kill it when a checkpoint is whole, and give its checkpoints."""
    pattern = "*/students/student/seed-1/checkpoints/step-*/checksums.json"
    process: subprocess.Popen[str] = started(*words)
    try:
        while not any(output_dir.glob(pattern)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return sorted(path.parent for path in output_dir.glob(pattern))


@pytest.mark.long
def test_a_killed_training_with_projections_and_schedules_ends_bit_for_bit_like_one_that_was_not(
    tmp_path: Path,
) -> None:
    changes = ("train.steps=24", "train.checkpoint_every=8", "seeds=[1]", "controls=[]", "eval=[]")
    killed = tmp_path / "killed"
    words = ["distill", "-r", "whole.yaml", *changes, "--output-dir", str(killed)]
    left = killed_after_a_checkpoint(words, killed)
    assert int(left[-1].name.removeprefix("step-")) < 24
    projections = [name for name in load_file(left[-1] / "model.safetensors") if "projection" in name]
    assert len(projections) == 2 * 3, "weight and bias of embeddings and two layers"
    again = distilled("whole", *changes, output_dir=killed)
    other = distilled("whole", *changes, output_dir=tmp_path / "other")
    assert weights(again) == weights(other)
    assert [(line["step"], line["losses"]) for line in trained_steps(again)] == [
        (line["step"], line["losses"]) for line in trained_steps(other)
    ]
    assert len(trained_steps(other)) == 24
