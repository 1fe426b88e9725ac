"""``stlm-kd estimate``: its figures against real trainings, its output, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.errors import ModelError, RecipeError, StlmKdError, UsageError
from stlm_kd.estimate.devices import devices
from stlm_kd.estimate.estimate import estimate_recipe
from stlm_kd.estimate.placing import by_precision, is_precision_open
from stlm_kd.estimate.result import Estimate
from stlm_kd.recipe import load
from stlm_kd.sharing.pins import Pins, using
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def sample() -> Estimate:
    return estimate_recipe("sample-two-teachers", gpus=[1, 8], gpu=["h100", "cpu"], efficiency=0.5)


def test_the_figures_of_a_sample_hang_together(sample: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stlm_kd.estimate.estimate.estimate_recipe", lambda *_, **__: sample)
    found = json.loads(CliRunner().invoke(app, ["estimate", "sample-two-teachers", "--json"]).stdout)
    counted = found["counted"]
    assert found["given"] == {"efficiency": 0.5} and "assumed" not in found
    assert counted["tokens"] == counted["steps"] * counted["rows"] * counted["length"]
    assert counted["flops_per_step"] == round(sum(counted["flops"].values()))
    settings = {label: memory["peak"] for label, memory in counted["settings"].items()}
    assert settings["fp32, gradient checkpointing"] < settings["fp32"] > settings["bf16"]
    placed = {(m["zero"], m["placement"], m["gpus"]): m for m in counted["memory"]}
    by_stage = [placed[zero, "replicate", 8]["peak"] for zero in range(3)]
    assert by_stage[0] > max(by_stage[1:])  # stage 3 keeps small models gathered, beside each device's part
    trained = 4 * counted["models"][0]["parameters"]
    assert placed[3, "replicate", 8]["weights"] == trained + trained // 8
    sent = [counted["collectives"][str(zero)] for zero in range(4)]
    assert [one["kind"] for one in sent[0]] == ["all-reduce"] and len(sent[1]) == len(sent[2]) == 2
    whole = [model["num_bytes"] for model in counted["models"][1:]]
    assert placed[0, "replicate", 8]["teachers"] == placed[0, "shard", 1]["teachers"] == sum(whole)
    assert placed[0, "cpu", 8]["teachers"] == 0
    own = sum(size // 8 for size in whole)
    assert own <= placed[0, "shard", 8]["teachers"] < sum(whole)
    one, eight = (
        s for s in found["calculated"] if s["device"] == "h100" and s["speed"]["scaling"] == "strong"
    )
    assert eight["tokens_per_second"] <= 8 * one["tokens_per_second"]
    assert one["hours"] * 3600 * one["tokens_per_second"] == pytest.approx(counted["tokens"])


def test_a_precision_that_is_left_open_is_that_of_each_device(sample: Estimate) -> None:
    parameters = sum(model.parameters for model in sample.models[1:])
    held = {speed.device: speed.memory.teachers for speed in sample.speeds if speed.speed.gpus == 1}
    assert held == {"h100": 2 * parameters, "cpu": 4 * parameters}
    assert sum(model.num_bytes for model in sample.models[1:]) == 2 * parameters
    assert set(sample.caches[0].break_even or {}) == {"h100", "cpu"}
    assert any("left open" in note for note in sample.notes)


def test_a_precision_that_recipe_or_pins_state_is_that_of_all_devices() -> None:
    recipe, wanted = (
        load("sample-two-teachers", ["teachers[0].precision=fp32"]),
        devices(["cpu", "h100", "t4"]),
    )
    with using(Pins()):
        found = [
            ([teacher.precision for teacher in own.teachers], [device.name for device in on])
            for own, on in by_precision(recipe, wanted)
        ]
    assert found == [(["fp32", "bf16"], ["h100", "t4"]), (["fp32", "fp32"], ["cpu"])]
    with using(Pins(teacher_precision="fp32")):
        ((own, on),) = by_precision(recipe, wanted)
        assert not is_precision_open(recipe)
    assert {teacher.precision for teacher in own.teachers} == {"fp32"} and len(on) == 3


def test_the_tables_say_how_each_figure_was_found(sample: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stlm_kd.estimate.estimate.estimate_recipe", lambda *_, **__: sample)
    shown = CliRunner().invoke(app, ["estimate", "sample-teacher-llama"]).stdout
    titles = ("Models: counted", "FLOPs of matrix products: counted", "Speed: calculated", "0.5 (given)")
    assert [title for title in titles if title not in shown] == []


def test_an_offloaded_optimizer_and_a_smaller_last_micro_batch() -> None:
    """Two devices have half the rows each, in a micro-batch of 1,600 and one of 800."""
    changes = ["train.effective_batch=4800", "train.micro_batch=1600"]
    changes.append("engine.deepspeed={zero: 2, offload: optimizer}")
    found = estimate_recipe("sample-teacher-llama", changes, gpus=[1, 2], gpu=["h100"])
    pace = {one.speed.gpus: one.tokens_per_second for one in found.speeds if one.speed.scaling == "strong"}
    assert pace[2] / pace[1] == pytest.approx(2, rel=0.05)
    assert any(note.startswith("time is that of an optimizer on the device") for note in found.notes)
    assert {memory.optimizer for memory in found.memory if memory.zero == 2} == {0}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpu": ["h1000"]}, UsageError, "'h1000' found; expected a known device .did you mean h100"),
        ({"gpus": [0]}, UsageError, "--gpus: 0 found; expected numbers from 1"),
        ({"gpus": [10**30]}, UsageError, "000 found; expected numbers from 1 to 65,536"),
        ({"gpus": []}, UsageError, "--gpus: 0 numbers found; expected 1 to 16"),
        ({"gpu": []}, UsageError, "--gpu: no device found"),
        ({"efficiency": 1.5}, UsageError, "--efficiency: 1.5 found; expected a share"),
        ({"efficiency": 1e-320}, UsageError, "--efficiency: 9.9.*e-321 found; expected a share from 0.001"),
        ({"efficiency": float("nan")}, UsageError, "--efficiency: nan found; expected a share"),
        ({"tokens": 0}, UsageError, "--tokens: 0 found; expected 1 to"),
        ({"tokens": 10**400}, UsageError, "--tokens: a longer number found; expected 1 to"),
        ({"overrides": ["data.context=512"]}, RecipeError, "positions, but data.context is 512"),
    ],
)
def test_bad_input_is_one_message(options: dict[str, object], error: type[StlmKdError], message: str) -> None:
    with pytest.raises(error, match=message):
        estimate_recipe("sample-two-teachers", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("gpus", ["٨", "²", "1" * 5000, "1,,2", "-1", "1e3", "1_000"])
def test_numbers_of_devices_are_ascii_digits(gpus: str) -> None:
    done = CliRunner().invoke(app, ["estimate", "sample-teacher-llama", "--gpus", gpus])
    assert done.exit_code == 2 and "found; expected whole numbers from 1 to 65,536" in done.stderr


def test_empty_names_of_devices_are_ignored(sample: Estimate, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("stlm_kd.estimate_recipe", lambda *_, gpu, **__: asked.append(gpu) or sample)
    for given in ("h100,", ",h100, ,t4"):
        assert CliRunner().invoke(app, ["estimate", "sample-teacher-llama", "--gpu", given]).exit_code == 0
    assert asked == [["h100"], ["h100", "t4"]]
    monkeypatch.undo()
    done = CliRunner().invoke(app, ["estimate", "sample-teacher-llama", "--gpu", ","])
    assert done.exit_code == 2 and done.stderr.startswith("--gpu: no device found; expected some of a100")


def test_a_teacher_that_fits_nowhere_is_named_with_what_would(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    sizes = {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    LlamaConfig(num_attention_heads=64, vocab_size=700, **sizes).save_pretrained(tmp_path)
    change = [f"teachers[0].model={tmp_path}", "teachers[0].recipe=null"]
    message = (
        r"teachers\[0\] \(gpt2\): 145\.\d GiB of weights on each of 64 devices by placement: replicate .*"
        "use placement: shard, offload or cpu, .*cache: auto"
    )
    with pytest.raises(ModelError, match=message):
        estimate_recipe("sample-two-teachers", change, gpu=["t4", "h100"])


MEASURE = """
import contextlib, ctypes, gc, sys, threading
import torch
from stlm_kd.estimate.simulation import skeleton
from stlm_kd.estimate.simulation.simulate import simulate
from stlm_kd.estimate.simulation.stand_ins import batch_of
from stlm_kd.models.forward import autocast
from stlm_kd.recipe import load
from stlm_kd.training.optimizer import make_optimizer

def own_memory():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if "RssAnon" in line)

def train(models, steps):
    recipe, step = models.recipe, models.step()
    step.train()
    optimizer = make_optimizer(step, recipe.train.config)
    rows = recipe.train.micro_batch
    batch = batch_of(recipe, models.vocabulary, rows, pairs=models.job.pairs_rows)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for _ in range(recipe.train.effective_batch // rows):
            with autocast(torch.device("cpu"), recipe.train.precision):
                loss = step(batch).loss
            loss.backward()
        optimizer.step()

counted = skeleton.Skeleton.of(load(sys.argv[1], sys.argv[2:]))
run = simulate(counted, on_cpu=True)
models = (counted.student, *counted.teachers.values())
weights = sum(weight.nbytes for model in models for weight in model.parameters())
skeleton.without_storage = contextlib.nullcontext  # weights, from here on
train(counted.like(rows=1, effective_batch=1), 1)  # what libraries take at first use
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
before = peak = own_memory()
ended = threading.Event()

def watch():
    global peak
    while not ended.wait(0.001):
        peak = max(peak, own_memory())

watcher = threading.Thread(target=watch)
watcher.start()
train(counted.like(), 2)
ended.set()
watcher.join()
print((weights + 8 * run.trained + run.peak) / (peak - before))
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "changes",
    [
        ["sample-two-teachers"],
        ["sample-two-teachers", "train.gradient_checkpointing=true"],
        ["sample-two-teachers", "train.precision=bf16"],
        ["sample-diito"],
    ],
    ids=["fp32", "checkpointing", "bf16", "interventions"],
)
def test_memory_is_within_15_percent_of_what_a_real_training_takes(changes: list[str]) -> None:
    own = ["student.preset=stlm-6m", "student.tokenizer.size=4096", "train.effective_batch=64"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",  # freed tensors go back to the system
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    command = [sys.executable, "-c", MEASURE, *changes, *own, "train.micro_batch=32"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert 0.85 <= float(done.stdout) <= 1.15
