"""Killed, damaged, finished, foreign: what a training run makes of the checkpoints it finds."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stlm_kd.data.batch import Batch
from stlm_kd.errors import CheckpointError, DataError, NonFiniteError
from stlm_kd.tracking import Trackers, read_metrics
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from tests.support.engine_pico import Memory, PicoBatches, PicoStep, digest, held_out, pico_fit
from tests.support.paths import ROOT

PLAN = TrainingConfig(
    steps=9, learning_rate=1e-2, validate_every=3, keep="best", checkpoint_every=2, log_every=1
)
WORKER = {
    "settings": {
        "steps": 9,
        "learning_rate": 1e-2,
        "validate_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
    },
    "dropout": 0.2,
}


def work(
    folder: Path, signals: dict[int, list[int]], within: str = "", **options: object
) -> subprocess.CompletedProcess[str]:
    """One process of ``tests.support.engine_worker``, with what it takes."""
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.engine_worker",
            str(folder),
            json.dumps({**WORKER, "signals": signals, **options}),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "STLM_KD_STOP_WITHIN": within},
        capture_output=True,
        text=True,
        timeout=120,
    )


def untimed(folder: Path) -> list[dict[str, object]]:
    timed = ("seconds", "seconds_left", "tokens_per_second")
    return [
        {k: v for k, v in line.items() if k not in timed}
        for line in read_metrics(folder / "metrics.jsonl")
        if line["kind"] != "note"
    ]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = work(folder, {})
    assert done.returncode == 0, done.stderr
    return folder


def told(folder: Path) -> tuple[str, object]:
    result = json.loads((folder / "result-0.json").read_text())
    return result["digest"], result["result"]["validation_history"]


def test_a_killed_run_ends_bit_for_bit_like_an_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    assert work(tmp_path, {5: [signal.SIGKILL, 0]}).returncode == -signal.SIGKILL
    assert max(line["step"] for line in untimed(tmp_path)) == 5
    resumed = work(tmp_path, {})
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 4" in resumed.stderr
    assert told(tmp_path) == told(uninterrupted)
    assert untimed(tmp_path) == untimed(uninterrupted)
    assert len(untimed(tmp_path)) == 9 + 3


def test_ctrl_c_ends_a_process_with_130_after_saving(tmp_path: Path) -> None:
    stopped = work(tmp_path, {2: [signal.SIGINT, 0]})
    assert stopped.returncode == 130, stopped.stderr
    assert "stopped by Ctrl-C after step 3; saved" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir()


def test_sigterm_ends_a_process_with_75_and_it_goes_on_from_there(
    uninterrupted: Path, tmp_path: Path
) -> None:
    # During the third step (index 2), after which a validation is due but no checkpoint.
    stopped = work(tmp_path, {2: [signal.SIGTERM, 0]})
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by SIGTERM after step 3; saved" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    resumed = work(tmp_path, {})
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after step 3" in resumed.stderr
    assert told(tmp_path) == told(uninterrupted)
    assert untimed(tmp_path) == untimed(uninterrupted)


@pytest.mark.parametrize(
    ("options", "said", "resumed_after"),
    [
        # Two micro-batches of two seconds: after the first, too little of the five seconds is left.
        pytest.param(
            {"slow": {"2": 2}}, r"stopped by SIGTERM after step 2; saved \S+step-00000002;", 2, id="slow-step"
        ),
        pytest.param(
            {"hangs": "step-00000003"},
            r"stopped by SIGTERM without time to save; the same command resumes from \S+step-00000002 "
            r"\(STLM_KD_STOP_WITHIN: 5 s\)\n",
            2,
            id="write",
        ),
    ],
)
def test_sigterm_ends_a_process_in_time_and_loses_no_more_than_a_step(
    uninterrupted: Path, tmp_path: Path, options: dict[str, object], said: str, resumed_after: int
) -> None:
    stopped = work(tmp_path, {2: [signal.SIGTERM, 0]}, within="5", **options)
    assert stopped.returncode == 75, stopped.stderr
    assert re.search(said, stopped.stderr) and "Traceback" not in stopped.stderr, stopped.stderr
    resumed = work(tmp_path, {})
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed after step {resumed_after}" in resumed.stderr
    assert told(tmp_path) == told(uninterrupted)
    assert untimed(tmp_path) == untimed(uninterrupted)


def test_dropout_draws_the_same_whatever_ran_before(tmp_path: Path) -> None:
    digests = set()
    for name, noise in (("a", 0), ("b", 17)):
        step = PicoStep(dropout=0.5)
        torch.rand(noise)
        pico_fit(step, tmp_path / name, replace(PLAN, validate_every=2 + noise))
        step_of_last = load_file(tmp_path / name / "checkpoints" / "step-00000009" / "model.safetensors")
        digests.add(step_of_last["head.weight"].numpy().tobytes())
    assert len(digests) == 1


def test_another_seed_drops_other_units(tmp_path: Path) -> None:
    steps = [PicoStep(dropout=0.5) for _ in range(2)]
    for seed, step in enumerate(steps):
        pico_fit(step, tmp_path / str(seed), replace(PLAN, seed=seed))
    assert digest(steps[0]) != digest(steps[1])


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, again, batches = PicoStep(), PicoStep(), PicoBatches()
    result = pico_fit(first, tmp_path, PLAN)
    assert pico_fit(again, tmp_path, PLAN, batches=batches) == result
    assert batches.asked == []
    assert digest(again) == digest(first)


def test_without_resume_it_begins_anew(tmp_path: Path) -> None:
    batches = PicoBatches()
    pico_fit(PicoStep(), tmp_path, PLAN)
    pico_fit(PicoStep(), tmp_path, PLAN, batches=batches, resume=False)
    assert batches.asked == list(range(9))


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(tmp_path: Path) -> None:
    whole, memory, batches = PicoStep(), Memory(), PicoBatches()
    pico_fit(whole, tmp_path, PLAN)
    newest = tmp_path / "checkpoints" / "step-00000009" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:-10])
    step = PicoStep()
    pico_fit(step, tmp_path, PLAN, tracker=memory, batches=batches)
    assert ["step-00000009 is damaged" in note for note in memory.notes] == [True]
    assert batches.asked == [8]
    assert digest(step) == digest(whole)


def test_checkpoints_of_another_recipe_are_refused_and_stay(tmp_path: Path) -> None:
    pico_fit(PicoStep(), tmp_path, PLAN)
    step = PicoStep()
    before = digest(step)
    with pytest.raises(CheckpointError, match="fingerprint pico found, expected other"):
        pico_fit(step, tmp_path, PLAN, fingerprint="other")
    assert digest(step) == before
    assert (tmp_path / "checkpoints" / "step-00000009").is_dir()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    pico_fit(PicoStep(), tmp_path, PLAN)
    other = PicoStep()
    other.more = torch.nn.Linear(1, 1)
    with pytest.raises(CheckpointError, match=r"2 missing \(more.bias, more.weight\)"):
        pico_fit(other, tmp_path, PLAN)


def test_frozen_weights_are_neither_changed_nor_saved_and_idle_ones_are_tolerated(tmp_path: Path) -> None:
    step = PicoStep()
    before = {name: value.clone() for name, value in step.state_dict().items()}
    pico_fit(step, tmp_path, PLAN)
    saved = load_file(tmp_path / "checkpoints" / "step-00000009" / "model.safetensors")
    assert set(saved) == {n for n in before if not n.startswith("frozen")}
    for name in ("frozen.weight", "frozen.bias", "idle.weight", "idle.bias"):
        assert torch.equal(step.state_dict()[name], before[name])
    assert not torch.equal(step.head.weight, before["head.weight"])


def test_a_tied_weight_is_saved_once_and_stays_tied(tmp_path: Path) -> None:
    step, resumed = PicoStep(), PicoStep(seed=1)
    for module in (step, resumed):
        module.head.weight = module.embedding.weight
    pico_fit(step, tmp_path, PLAN)
    assert "head.weight" not in load_file(tmp_path / "checkpoints" / "step-00000009" / "model.safetensors")
    resumed.frozen.load_state_dict(step.frozen.state_dict())
    resumed.idle.load_state_dict(step.idle.state_dict())
    pico_fit(resumed, tmp_path, PLAN)
    assert resumed.head.weight is resumed.embedding.weight
    assert digest(resumed) == digest(step)


class Rising(PicoStep):
    """Its labels' validation loss is least after ``bottom`` training forwards, whatever is learnt."""

    bottom = 4

    def forward(self, batch: object, denominators: object) -> object:
        output = super().forward(batch, denominators)
        if not self.training:
            output.sums["labels"] = 5.0 * (1 + (self.forwards - self.bottom).abs().float())
        return output


EVERY_STEP = replace(PLAN, validate_every=1, checkpoint_every=None)


def test_the_best_weights_are_those_at_the_least_validation_loss(tmp_path: Path) -> None:
    step, stopped = Rising(), PicoStep()
    result = pico_fit(step, tmp_path / "a", EVERY_STEP)
    assert (result.steps, result.best_step, result.stopped) == (9, 4, "done")
    assert [entry.step for entry in result.validation_history] == list(range(10))
    assert step.forwards == 4
    pico_fit(stopped, tmp_path / "b", replace(EVERY_STEP, keep="last"))
    assert stopped.forwards == 9
    at_four = load_file(tmp_path / "a" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert torch.equal(step.head.weight, at_four["head.weight"])


def test_it_stops_early_after_as_many_validations_without_improvement(tmp_path: Path) -> None:
    result = pico_fit(Rising(), tmp_path, replace(EVERY_STEP, patience=2))
    assert (result.steps, result.best_step, result.stopped) == (6, 4, "early-stop")
    again = PicoBatches()
    assert pico_fit(Rising(), tmp_path, replace(EVERY_STEP, patience=2), batches=again) == result
    assert again.asked == []


class Worsening(Rising):
    """No validation is better than the one before the first step."""

    bottom = 0


def test_the_state_before_the_first_step_is_kept_where_training_makes_it_worse(tmp_path: Path) -> None:
    step, untrained, memory = Worsening(), Worsening(), Memory()
    result = pico_fit(step, tmp_path, EVERY_STEP, tracker=memory)
    assert (result.steps, result.best_step) == (9, 0)
    assert digest(step) == digest(untrained)
    first = memory.validations[0]
    assert (first.step, first.is_best) == (0, True) and not any(v.is_best for v in memory.validations[1:])
    assert memory.notes == ["no validation was better than that before the first step: kept step 0"]
    again = Worsening()
    assert pico_fit(again, tmp_path, EVERY_STEP) == result and digest(again) == digest(untrained)


def test_where_the_last_are_kept_nothing_is_validated_before_the_first_step(tmp_path: Path) -> None:
    result = pico_fit(Worsening(), tmp_path, replace(EVERY_STEP, keep="last"))
    assert [entry.step for entry in result.validation_history] == list(range(1, 10))
    assert not (tmp_path / "checkpoints" / "step-00000000").exists()


def test_a_run_stopped_before_its_first_step_resumes_bit_for_bit(tmp_path: Path) -> None:
    class Killed(PicoBatches):
        def step(self, index: int) -> Sequence[Batch]:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        pico_fit(Rising(), tmp_path / "a", EVERY_STEP, batches=Killed())
    assert [path.name for path in (tmp_path / "a" / "checkpoints").glob("step-*")] == ["step-00000000"]
    resumed, whole, memory = Rising(seed=5), Rising(), Memory()
    resumed.frozen.load_state_dict(whole.frozen.state_dict())
    resumed.idle.load_state_dict(whole.idle.state_dict())
    result = pico_fit(resumed, tmp_path / "a", EVERY_STEP, tracker=memory)
    assert replace(result, seconds=0) == replace(pico_fit(whole, tmp_path / "b", EVERY_STEP), seconds=0)
    assert digest(resumed) == digest(whole)
    assert [v.step for v in memory.validations] == list(range(10))


def test_a_model_that_gives_no_finite_loss_is_told_before_the_first_step(tmp_path: Path) -> None:
    class NoNumber(PicoStep):
        def forward(self, batch: object, denominators: object) -> object:
            output = super().forward(batch, denominators)
            output.sums["labels"] = output.sums["labels"] * float("nan")
            return output

    batches = PicoBatches()
    with pytest.raises(NonFiniteError, match="before the first step: labels nan; the model itself"):
        pico_fit(NoNumber(), tmp_path, EVERY_STEP, batches=batches)
    assert batches.asked == []


def test_validation_agrees_with_a_mean_over_all_held_out_tokens(tmp_path: Path) -> None:
    step = PicoStep()
    result = pico_fit(step, tmp_path, replace(PLAN, keep="last"))
    step.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in held_out():
            total += step(batch, {"labels": 1.0, "size": 1.0}).sums["labels"].item()
            count += step.count(batch)["labels"]
    assert result.validation_history[-1].losses["labels"] == pytest.approx(total / count, rel=1e-6)


def test_validation_without_a_label_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no token is labelled"):
        fit(
            PicoStep(),
            PicoBatches(),
            PLAN,
            folder=tmp_path,
            validation=list,
            tracker=Trackers(),
            resume=True,
            fingerprint="",
        )
