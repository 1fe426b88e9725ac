"""What a recipe can ask for beside the common case, by the command line, and what comes of it."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.models.load import load_language_model, save_model
from stlm_kd.pipeline.distill import distill
from stlm_kd.recipe import load
from tests.support.pico import pico_model
from tests.support.road import ADAPT, LLAMA, TEXT, TRAIN, distilled, done, stlm_kd, student, weights

STILL = ("train.steps=1", "train.learning_rate=1e-30", "train.weight_decay=0", "train.validate_every=null")
"""A training that leaves the weights as they were."""

CALM = "train.eps=1e-3"
"""Adam divides a gradient by its size, so that with its usual eps a rounding error of one that should be 0
becomes a whole step; and how a matrix product rounds depends on where its operands lie in memory."""


def tensors(run: Path) -> dict[str, Tensor]:
    return load_file(student(run) / "model" / "model.safetensors")


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=tolerance), name


def test_rows_that_pad_a_teachers_embedding_change_nothing(place: Path, tmp_path: Path) -> None:
    own = load_tokenizer("own")
    padded = load_language_model("padded", "clm")
    assert padded.config.vocab_size == 320 > len(own) == 300
    trimmed = load_language_model("padded", "clm")
    trimmed.resize_token_embeddings(300)
    save_model(trimmed, own, tmp_path / "trimmed")
    one = ("teachers=[{name: a, model: padded}]", f"teachers=[{{name: a, model: {tmp_path}/trimmed}}]")
    runs = [distilled("taught", teachers, CALM, output_dir=tmp_path / "runs") for teachers in one]
    assert_close(tensors(runs[0]), tensors(runs[1]))


def test_a_teacher_of_weight_zero_teaches_nothing(place: Path, tmp_path: Path) -> None:
    alone = distilled("taught", "teachers=[{name: a, model: same}]", CALM, output_dir=tmp_path)
    weighted = distilled(
        "taught", "combine={how: weighted, weights: {a: 3, b: 0}}", CALM, output_dir=tmp_path
    )
    mean = distilled("taught", CALM, output_dir=tmp_path)
    assert_close(tensors(alone), tensors(weighted))
    assert weights(mean) != weights(weighted)


def test_an_objective_of_one_teacher_does_not_ask_the_other(place: Path, tmp_path: Path) -> None:
    change = "objectives=[{loss: labels}, {loss: reverse_kl, teacher: b}]"
    both = distilled("taught", change, output_dir=tmp_path)
    alone = distilled("taught", change, "teachers=[{name: b, model: padded}]", output_dir=tmp_path)
    assert weights(both) == weights(alone)


def test_a_student_of_a_teachers_layers_begins_as_they_are(place: Path, tmp_path: Path) -> None:
    body = ("student={tokenizer: own, init_from: {teacher: a, layers: last}}", "controls=[no-teacher]")
    run = distilled("taught", *body, *STILL, output_dir=tmp_path)
    teacher = load_file("same/model.safetensors")
    for variant in ("student", "no-teacher"):
        found = load_file(student(run, variant) / "model" / "model.safetensors")
        assert not any(".layers.1." in name for name in found)
        for name, value in found.items():
            assert torch.equal(value, teacher[name.replace(".layers.0.", ".layers.1.")])


def test_a_student_goes_on_from_a_checkpoint(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", "student={tokenizer: own, model: same}", *STILL, output_dir=tmp_path)
    assert_close(tensors(run), load_file("same/model.safetensors"), 0)


def test_gradient_checkpointing_changes_memory_and_not_the_result(place: Path, tmp_path: Path) -> None:
    runs = [
        distilled("plain", f"train.gradient_checkpointing={on}", output_dir=tmp_path) for on in (False, True)
    ]
    assert_close(tensors(runs[0]), tensors(runs[1]))
    assert runs[0] != runs[1]


def test_bf16_is_near_fp32_and_saved_in_fp32(place: Path, tmp_path: Path) -> None:
    runs = [distilled("plain", f"train.precision={name}", output_dir=tmp_path) for name in ("fp32", "bf16")]
    losses = [json.loads((student(run) / "report.json").read_text())["best_loss"] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert weights(runs[0]) != weights(runs[1])
    assert {value.dtype for value in tensors(runs[1]).values()} == {torch.float32}


def test_micro_batches_change_memory_and_not_the_result(place: Path, tmp_path: Path) -> None:
    runs = [distilled("plain", f"train.micro_batch={size}", output_dir=tmp_path) for size in ("null", "2")]
    assert_close(tensors(runs[0]), tensors(runs[1]))


def test_without_held_out_text_the_last_weights_are_kept_and_curves_drawn(
    place: Path, tmp_path: Path
) -> None:
    change = ("data.validation=null", "train.validate_every=null")
    run = distilled("plain", *change, output_dir=tmp_path)
    report = json.loads((student(run) / "report.json").read_text())
    assert (report["steps"], report["best_loss"]) == (6, None)
    assert (run / "curves.png").stat().st_size > 0


def test_epochs_become_steps(place: Path, tmp_path: Path) -> None:
    steps = []
    text = "data.train={sample: train, size: 10k}"
    for epochs in (1, 2):
        change = ("train.steps=null", f"train.epochs={epochs}", text)
        run = distilled("plain", *change, output_dir=tmp_path)
        report = json.loads((student(run) / "report.json").read_text())
        steps.append(report["steps"])
        assert report["tokens_seen"] == epochs * report["tokens_of_text"]
    assert steps[1] == 2 * steps[0]


def test_adapting_by_recipe_reports_three_states_for_each_teacher(place: Path, tmp_path: Path) -> None:
    suites = "eval=[perplexity, {suite: lm-eval, tasks: [sample_minimal_pairs], limit: 4}]"
    found = done("adapt-teacher", "-r", "adapts.yaml", suites, "--output-dir", str(tmp_path))
    reports = found["results"]["adaptations"]
    assert {name: report["init"] for name, report in reports.items()} == {"g": "all copied", "q": "mean"}
    table = Path(found["folder"], "table.txt").read_text()
    for name, report in reports.items():
        states = [report[state] for state in ("before", "initialised", "trained")]
        assert len(set(states)) == 3 and states[2] < states[1]
        assert all(f"{state:.4f}" in table for state in states)
        assert (report["old_vocabulary"], report["new_vocabulary"]) == (320, 300)
        assert sum(report["tokens_by_origin"].values()) == 300
        assert report["trained_parameters"] == 300 * 16
        assert 4_000 * 0.9 < report["tokens_seen"] < 4_000 * 1.2
        folder = Path(found["folder"], "teachers", name)
        assert (
            load_language_model(str(folder), "clm").config.vocab_size
            == len(load_tokenizer(str(folder)))
            == 300
        )
        suite = found["results"]["suites"][f"{name}, adapted"][0]
        assert {score["metric"] for score in suite["scores"]} >= {"bits_per_byte"}
        _check_differences(found["results"], name, table)


def _check_differences(results: dict[str, Any], name: str, table: str) -> None:
    """What adaptation cost: the adapted teacher's scores minus its own, example by example."""

    def value(model: str, suite: str, metric: str) -> float:
        scores = [s for r in results["suites"][model] if r["suite"] == suite for s in r["scores"]]
        (found,) = [s["value"] for s in scores if s["metric"] == metric and s["part_of"] is None]
        return float(found)

    rows = [row for row in results["differences"] if row["name"] == f"{name}, adapted"]
    assert {row["noise"] for row in rows} == {"examples"}
    for row in rows:
        expected = [value(model, row["suite"], row["metric"].split()[-1]) for model in (row["name"], name)]
        assert row["mean"] == pytest.approx(expected[0] - expected[1])
        if row["suite"] == "lm-eval":
            assert row["num_examples"] == 36, "four of each part"
        assert row["difference"]["low"] <= row["mean"] <= row["difference"]["high"]
        assert f"{row['mean']:+.4f}" in table


def test_one_of_a_recipes_teachers_can_be_adapted(place: Path, tmp_path: Path) -> None:
    found = done("adapt-teacher", "-r", "adapts.yaml", "q", "eval=[]", "--output-dir", str(tmp_path))
    assert list(found["results"]["adaptations"]) == ["q"]


def test_adapting_leaves_a_distillation_and_other_teachers_as_they_are(place: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "both.yaml"
    teachers = ", ".join(f"{{name: {name}, model: {name}, adapt: {ADAPT}}}" for name in ("gpt2", "qwen2"))
    body = f"task: clm\nstudent: {{tokenizer: own, architecture: {LLAMA}}}\nteachers: [{teachers}]\n"
    recipe.write_text(f"{body}{TEXT}\nobjectives: [{{loss: labels}}, {{loss: forward_kl}}]\n{TRAIN}\n")
    words = ["-r", str(recipe), "--output-dir", str(tmp_path)]
    commands = [["distill"], ["adapt-teacher"], ["adapt-teacher", "gpt2"], ["adapt-teacher", "qwen2"]]
    found = [done(command, *words, *names) for command, *names in commands]
    assert len({one["folder"] for one in found}) == 4
    for one in found:
        assert json.loads(Path(one["folder"], "results.json").read_text()) == one["results"]
    assert [list(one["results"].get("adaptations", ())) for one in found] == [
        [], ["gpt2", "qwen2"], ["gpt2"], ["qwen2"],
    ]  # fmt: skip
    assert Path(found[1]["folder"]).name.startswith("both-adapt-")


def test_an_adaptation_is_begun_anew_where_it_is_not_to_be_resumed(place: Path, tmp_path: Path) -> None:
    words = ["adapt-teacher", "-r", "adapts.yaml", "g", "eval=[]", "--output-dir", str(tmp_path)]
    done(*words)
    (stage,) = (tmp_path / "stages").glob("adapted-*")
    for resume, left in (("auto", True), ("never", False)):
        shutil.rmtree(stage, ignore_errors=True)
        partial = stage.with_name(f"{stage.name}.partial")
        partial.mkdir()
        (partial / "left").touch()
        done(*words, "--resume", resume)
        assert (stage / "left").exists() == left


def test_adapting_by_options_needs_no_recipe(place: Path, tmp_path: Path) -> None:
    words = ["adapt-teacher", "gpt2", "--tokenizer", "own", "--data", "train.txt"]
    words += ["--validation", "valid.txt", "teachers[0].adapt={tokens: 3k, init: random, effective_batch: 8}"]
    words += ["data.context=64", "--learning-rate", "1e-3", "--seed=3"]  # the last two as in earlier releases
    result = stlm_kd(*words, "--output-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    (run,) = done("runs", "list", "--output-dir", str(tmp_path))
    report = json.loads((Path(run["path"]) / "results.json").read_text())["adaptations"]["gpt2"]
    assert (report["init"], report["steps"]) == ("random", 6)
    assert "own vocabulary" in result.stdout
    generated = done("generate", run["path"], "--prompt", "The", "--max-new-tokens", "3")
    assert generated["text"].startswith("The")


def test_a_models_folder_is_scored_beside_a_run(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.json"
    suite = "{suite: lm-eval, tasks: [sample_minimal_pairs], limit: 2}"
    words = ["eval", "same", "padded", "--suite", "perplexity", "--suite", suite, "--data", "valid.txt"]
    found = done(*words, "--output", str(output))
    assert json.loads(output.read_text()) == found
    assert {model: len(suites) for model, suites in found.items()} == {"same": 2, "padded": 2}


def test_a_poisoned_teacher_ends_the_run_and_is_named_by_its_term(place: Path, tmp_path: Path) -> None:
    model = pico_model("llama", vocabulary=300)
    model.get_output_embeddings().weight.data[7] = 3e38  # finite, as its weights must be; its logits are not
    save_model(model, load_tokenizer("own"), tmp_path / "poisoned")
    teachers = f"teachers=[{{name: a, model: {tmp_path}/poisoned}}]"
    result = stlm_kd("distill", "-r", "taught.yaml", teachers, "--output-dir", str(tmp_path))
    assert result.exit_code == 1
    message = result.stderr.splitlines()[-1]
    assert message.startswith("step 1: loss, reverse_kl, gradient norm not finite (loss nan, labels 5.")
    (run,) = done("runs", "list", "--output-dir", str(tmp_path))
    assert run["status"] == "failed"


def test_a_learning_rate_that_explodes_keeps_the_last_checkpoint(place: Path, tmp_path: Path) -> None:
    changes = ["train.learning_rate=1e30", "train.clip=null", "train.checkpoint_every=1", "train.warmup=0"]
    result = stlm_kd("distill", "-r", "plain.yaml", *changes, "--output-dir", str(tmp_path))
    assert result.exit_code == 1
    assert "labels" in result.stderr and "not finite" in result.stderr
    (run,) = done("runs", "list", "--output-dir", str(tmp_path))
    kept = sorted(student(Path(run["path"])).glob("checkpoints/step-*/model.safetensors"))
    assert kept
    assert "not finite" in stlm_kd("runs", "show", run["path"]).stdout


def test_the_weights_of_the_best_validation_are_saved(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", output_dir=tmp_path)
    best = json.loads((student(run) / "report.json").read_text())
    lines = [json.loads(line) for line in (student(run) / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["losses"]["labels"] for line in lines if line["kind"] == "validation"}
    assert losses[best["best_step"]] == best["best_loss"] == min(losses.values())


def test_a_recipe_is_distilled_outside_the_main_thread(place: Path, tmp_path: Path) -> None:
    options = {"output_dir": tmp_path, "resume": "auto", "trust_remote_code": False, "command": ""}
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(distill, load("plain.yaml"), name="plain", **options).result()
    assert (run.path / "table.txt").is_file()
