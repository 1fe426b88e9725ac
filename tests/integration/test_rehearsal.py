"""The rehearsal: what cannot be saved, loaded or scored is reported before training."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.uses import USES
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import MissingResourceError, ModelError, StlmKdError
from stlm_kd.pipeline.checks import rehearsal, stand_ins
from stlm_kd.pipeline.checks.rehearsal import rehearse
from stlm_kd.pipeline.context import RecipeSetup, context_for
from stlm_kd.pipeline.distill import distill
from stlm_kd.pipeline.stages.tokenizer import setup_of, student_tokenizer
from stlm_kd.recipe import Recipe, load
from tests.support.road import distilled, started, stlm_kd, student, weights

CLASSIFIERS = [
    "data.train.size=600",
    "data.validation.size=40",
    "eval=[classification, {suite: agreement, attributions: [lime]}, interchange]",
]
GLUE = "eval=[perplexity, {suite: glue, tasks: [sample-acceptability], seeds: 1, steps: 2}]"
DIITO = ["objectives=[{loss: labels}, {loss: diito, teacher: a}]", "eval=[interchange]"]


def rehearsed(recipe: Recipe, folder: Path, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    place = context_for(recipe, folder, resume=True, trust_remote_code=False, run_name="run")
    (folder / "run").mkdir(parents=True, exist_ok=True)
    own = tokenizer or student_tokenizer(recipe, place)
    rehearse(RecipeSetup(recipe, own, place), folder=folder / "run", origin="mine.yaml")


def files(folder: Path) -> list[Path]:
    """The files of a run, apart from the list of its stages."""
    return [path for path in (folder / "run").rglob("*") if path.is_file() and path.name != USES]


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("whole", [], 5),
        ("plain", [GLUE], 1),
        ("taught", ["eval=[perplexity, interchange]"], 3),
        ("taught", DIITO, 3),
        ("masked", [], 4),
        ("filling", ["eval=[masked-loss]"], 1),
        ("adapts", [], 4),
    ],
)
def test_recipes_that_work_pass_and_leave_nothing_behind(
    name: str, changes: list[str], parts: int, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load(f"{name}.yaml", changes)
    if name == "adapts":
        made = context_for(recipe, tmp_path, resume=True, trust_remote_code=False, run_name="run")
        (tmp_path / "run").mkdir()
        rehearse(setup_of(recipe, made), folder=tmp_path / "run", origin="x", only=["g", "q"])
    else:
        rehearsed(recipe, tmp_path)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rehearsal")]
    assert line.count("student") + line.count("teachers[") == parts and "passed" in line
    assert files(tmp_path) == []


def test_classifiers_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rehearsed(load("sample-sentiment", CLASSIFIERS), tmp_path)
    assert "student, teachers[0] (larger): passed" in capsys.readouterr().err
    assert files(tmp_path) == []


class Refused(PreTrainedTokenizerFast):
    """Its files are not what it is in memory: they fold case."""

    def save_pretrained(self, *args: Any, **options: Any) -> Any:
        plain = self.backend_tokenizer.normalizer
        self.backend_tokenizer.normalizer = normalizers.Lowercase()
        try:
            return super().save_pretrained(*args, **options)
        finally:
            self.backend_tokenizer.normalizer = plain


def lossy_tokenizer(monkeypatch: pytest.MonkeyPatch) -> PreTrainedTokenizerFast:
    own = load_tokenizer("own")
    own.__class__ = Refused
    return own


def changed_student(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[PreTrainedModel], None]
) -> PreTrainedTokenizerFast | None:
    """The recipe's student, changed after it is built."""
    build = stand_ins.initial_student

    def built(job: Any) -> PreTrainedModel:
        model = build(job)
        change(model)
        return model

    monkeypatch.setattr(stand_ins, "initial_student", built)
    return None


def shared_tensors(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.k_proj.weight = attention.v_proj.weight


def settings_that_contradict_each_other(model: Any) -> None:
    model.generation_config.do_sample = False
    model.generation_config.temperature = 0.5


def weights_that_are_not_saved(model: Any) -> None:
    forward, bias = model.forward, torch.randn(model.config.vocab_size)

    def shifted(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        return SimpleNamespace(logits=output.logits + bias)

    model.forward = shifted


def failing_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise TypeError("unsupported operand type(s)")

    suite = replace(rehearsal.SUITES["perplexity"], function=fails)
    monkeypatch.setattr(rehearsal, "SUITES", {"perplexity": suite})


def no_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STLM_KD_DATA", raising=False)


PLANTED: dict[str, tuple[Any, list[str], type[StlmKdError], int, str]] = {
    "a tokenizer that is not the same once loaded": (
        lossy_tokenizer, [], ModelError, 3, "its tokenizer gives",
    ),
    "shared tensors": (
        lambda patch: changed_student(patch, shared_tensors),
        [], ModelError, 3, "cannot be saved, as the run",
    ),
    "generation settings that cannot be saved": (
        lambda patch: changed_student(patch, settings_that_contradict_each_other),
        [], ModelError, 3, "temperature",
    ),
    "a model that is not the same once loaded": (
        lambda patch: changed_student(patch, weights_that_are_not_saved),
        [], ModelError, 3, "it gives logits that differ by up to",
    ),
    "a suite without rows": (
        no_rows, ["eval=[{suite: lm-eval, tasks: [blimp]}]"], MissingResourceError, 5,
        "eval[0] (lm-eval): blimp",
    ),
    "a suite that raises": (
        failing_suite, ["eval=[perplexity]"], StlmKdError, 1, "eval[0] (perplexity): TypeError: unsupported",
    ),
    "a window beyond the positions": (
        lambda patch: None,
        ["eval=[{suite: perplexity, window: 4000}]"], ModelError, 3, "eval[0] (perplexity)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(PLANTED))
def test_what_would_fail_at_the_end_is_one_message_at_the_beginning(
    what: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, changes, kind, code, words = PLANTED[what]
    tokenizer = plant(monkeypatch)
    with pytest.raises(kind) as caught:
        rehearsed(load("plain.yaml", changes), tmp_path, tokenizer)
    message = str(caught.value)
    assert caught.value.exit_code == code and words in message
    assert message.startswith("mine.yaml: rehearsal: student: ")
    assert message.endswith("or skip the rehearsal with --no-rehearsal")
    assert files(tmp_path) == []


def test_a_command_stops_before_it_trains_and_goes_on_where_it_is_told_to(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **options: Any) -> None:
        raise TypeError("late")

    monkeypatch.setattr(rehearsal, "check_reloaded", fails)
    words = ["distill", "-r", "plain.yaml", "--output-dir", str(tmp_path)]
    refused = stlm_kd(*words)
    assert refused.exit_code == 3 and refused.stderr.count("plain: rehearsal: student") == 1
    assert not list(tmp_path.rglob("metrics.jsonl")) and not list(tmp_path.rglob("*.unfinished"))
    assert stlm_kd(*words, "--no-rehearsal").exit_code == 0
    again = stlm_kd(*words)  # nothing is left to train
    assert again.exit_code == 0 and "rehearsal" not in again.stderr


def test_what_is_trained_is_the_same_bit_for_bit_with_and_without_it(place: Path, tmp_path: Path) -> None:
    folders = [
        distilled("plain", output_dir=tmp_path / option, options=(option,))
        for option in ("--rehearsal", "--no-rehearsal")
    ]
    assert weights(folders[0]) == weights(folders[1])
    assert (student(folders[0]) / "model" / "tokenizer.json").is_file()


def test_the_generators_are_as_before(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    rehearsed(load("taught.yaml", ["eval=[perplexity, interchange]"]), tmp_path)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_what_another_run_trained_needs_no_rehearsal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str) -> str:
        distill("plain.yaml", name=name, output_dir=tmp_path)
        return capsys.readouterr().err

    assert "rehearsal" in run("first")
    assert "rehearsal" not in run("second")


@pytest.mark.long
def test_of_several_processes_one_rehearses_and_all_end_alike(place: Path, tmp_path: Path) -> None:
    change = "eval=[{suite: perplexity, window: 4000}]"
    command = started(
        *("distill", "-r", "plain.yaml", change, "--processes", "2", "--output-dir", str(tmp_path))
    )
    _, stderr = command.communicate(timeout=300)
    assert command.returncode == 3, stderr
    assert stderr.count("plain: rehearsal: student: eval[0] (perplexity)") == 1
    assert not list(tmp_path.rglob("metrics.jsonl")) and not list(tmp_path.rglob("*.unfinished"))
