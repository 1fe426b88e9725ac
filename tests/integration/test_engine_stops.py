"""What ends a training run early, and what several runs in one process leave behind."""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stlm_kd.data.batch import Batch
from stlm_kd.errors import CheckpointError, Interrupted, NonFiniteError, Preempted, StlmKdError, UsageError
from stlm_kd.training import TrainingConfig
from stlm_kd.training.backends.ddp import PlainEngine
from stlm_kd.training.checkpoint import CheckpointStore
from stlm_kd.training.processes import Processes, plain_accelerator
from stlm_kd.training.signals import StopSignals
from stlm_kd.training.validation import validate
from tests.support.engine_pico import Memory, PicoBatches, PicoOutput, PicoStep, digest, held_out, pico_fit
from tests.unit.training.test_checkpoint import files_of_at_most

PLAN = TrainingConfig(steps=6, learning_rate=1e-2, checkpoint_every=2, log_every=1)


class Poisoned(PicoStep):
    """From its fourth training forward on, one term or the gradient is not finite."""

    def __init__(self, poison: Callable[[PicoStep, PicoOutput], PicoOutput]) -> None:
        super().__init__()
        self.poison = poison
        self.before = ""

    def forward(self, batch: Batch, denominators: dict[str, float]) -> PicoOutput:
        output = super().forward(batch, denominators)
        if self.forwards < 4:
            return output
        self.before = digest(self)
        return self.poison(self, output)


def nan_term(step: PicoStep, output: PicoOutput) -> PicoOutput:
    return PicoOutput(output.loss * float("nan"), {**output.sums, "size": output.sums["size"] * float("nan")})


def infinite_term_without_gradient(step: PicoStep, output: PicoOutput) -> PicoOutput:
    return PicoOutput(output.loss, {**output.sums, "labels": output.sums["labels"] + float("inf")})


def infinite_gradient(step: PicoStep, output: PicoOutput) -> PicoOutput:
    # The square root of 0 is 0 with an infinite slope.
    return PicoOutput(output.loss + (step.head.bias[0] - step.head.bias[0].detach()).sqrt(), output.sums)


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        (nan_term, r"step 4: loss, size, gradient norm not finite \(loss nan, labels 2\.\d+, size nan"),
        (infinite_term_without_gradient, r"step 4: labels not finite .*labels inf"),
        (infinite_gradient, r"step 4: gradient norm not finite .*gradients not finite: head\.bias\)"),
    ],
)
def test_what_is_not_finite_is_named_and_stops_the_run_before_the_weights_change(
    tmp_path: Path, poison: Callable[[PicoStep, PicoOutput], PicoOutput], message: str
) -> None:
    step = Poisoned(poison)
    with pytest.raises(NonFiniteError, match=message):
        pico_fit(step, tmp_path, replace(PLAN, clip=None), validates=False)
    assert digest(step) == step.before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


class Signalling(PicoBatches):
    number = signal.SIGTERM

    def step(self, index: int) -> Sequence[Batch]:
        if index == 2:
            os.kill(os.getpid(), self.number)
        return super().step(index)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Preempted), (signal.SIGINT, Interrupted)])
def test_a_signal_ends_in_its_error_and_the_handlers_are_put_back(
    tmp_path: Path, number: signal.Signals, error: type[StlmKdError]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    batches = Signalling()
    batches.number = number
    with pytest.raises(error, match="after step 3"):
        pico_fit(PicoStep(), tmp_path, PLAN, batches=batches)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (tmp_path / "checkpoints" / "step-00000003").is_dir()


class Impatient(PicoBatches):
    """In its third step Ctrl-C is pressed so many times."""

    def __init__(self, presses: int) -> None:
        super().__init__()
        self.presses = presses

    def step(self, index: int) -> Sequence[Batch]:
        for _ in range(self.presses if index == 2 else 0):
            signal.raise_signal(signal.SIGINT)
        return super().step(index)


def test_a_second_ctrl_c_waits_for_the_checkpoint_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match=r"stopped by Ctrl-C after step 3; saved .*step-00000003"):
        pico_fit(PicoStep(), tmp_path, PLAN, batches=Impatient(2))
    assert (tmp_path / "checkpoints" / "step-00000003" / "checksums.json").is_file()
    assert (
        capfd.readouterr().err == "saving, then stopping; press Ctrl-C a third time to stop without saving\n"
    )


@pytest.mark.parametrize(
    ("every", "rest"), [(2, "resumes from .*step-00000002"), (None, "restarts this training")]
)
def test_a_third_ctrl_c_stops_at_once_and_says_what_is_left(
    tmp_path: Path, every: int | None, rest: str
) -> None:
    with pytest.raises(Interrupted, match=f"after step 2, without saving; the same command {rest}"):
        pico_fit(PicoStep(), tmp_path, replace(PLAN, checkpoint_every=every), batches=Impatient(3))


def test_a_signal_during_validation_stops_it_and_validation_is_made_up_for_later(tmp_path: Path) -> None:
    class Interrupting(PicoStep):
        def forward(self, batch: Batch, denominators: dict[str, float]) -> PicoOutput:
            if not self.training:
                signal.raise_signal(signal.SIGTERM)
            return super().forward(batch, denominators)

    plan, memory = replace(PLAN, validate_every=3), Memory()
    with pytest.raises(Preempted, match="after step 3"):
        pico_fit(Interrupting(), tmp_path / "a", plan, tracker=memory)
    assert memory.validations == []
    step, whole = PicoStep(), PicoStep()
    result = pico_fit(step, tmp_path / "a", plan)
    assert result.validation_history == pico_fit(whole, tmp_path / "b", plan).validation_history
    assert digest(step) == digest(whole)


def test_a_signal_while_setting_up_or_writing_stops_before_another_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Memory):
        def rewind(self, step: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    batches, write = PicoBatches(), CheckpointStore.save
    with pytest.raises(Preempted, match=r"after step 0; saved .*step-00000000"):
        pico_fit(PicoStep(), tmp_path / "a", PLAN, tracker=Slow(), batches=batches)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Preempted, match=r"after step 2; saved .*step-00000002"),
    ):
        patch.setattr(
            CheckpointStore, "save", lambda *a, **b: [write(*a, **b), os.kill(os.getpid(), signal.SIGTERM)]
        )
        pico_fit(PicoStep(), tmp_path / "a", PLAN, batches=batches)
    step, whole = PicoStep(), PicoStep()
    pico_fit(step, tmp_path / "a", PLAN, batches=batches)
    assert batches.asked == [*range(6)]
    pico_fit(whole, tmp_path / "b", PLAN)
    assert digest(step) == digest(whole)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "1e9"])
def test_a_deadline_that_is_no_time_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("STLM_KD_STOP_WITHIN", text)
    with pytest.raises(UsageError, match=f"STLM_KD_STOP_WITHIN: '{text}' found, expected seconds above 0"):
        pico_fit(PicoStep(), tmp_path, PLAN)
    assert not [*tmp_path.iterdir()]


def test_it_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(pico_fit(PicoStep(), tmp_path, PLAN)))
    thread.start()
    thread.join()
    assert results[0].steps == 6


def test_a_full_disk_ends_the_run_and_a_resumed_one_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    class Full(PicoBatches):
        def step(self, index: int) -> Sequence[Batch]:
            if index == 3:
                limit.__enter__()
            return super().step(index)

    limit = files_of_at_most(100)
    try:
        with pytest.raises(
            CheckpointError, match=r"step-00000004: .*could not be written .*step-00000002, is"
        ):
            pico_fit(PicoStep(), tmp_path / "a", PLAN, batches=Full())
    finally:
        limit.__exit__(None, None, None)
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-00000002"]
    step, whole, batches = PicoStep(), PicoStep(), PicoBatches()
    pico_fit(step, tmp_path / "a", PLAN, batches=batches)
    pico_fit(whole, tmp_path / "b", PLAN)
    assert batches.asked == [2, 3, 4, 5]
    assert digest(step) == digest(whole)


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_an_empty_gather_is_refused_before_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def empty(*_: object) -> dict[str, torch.Tensor]:
        return {name: tensor.new_zeros(0) for name, tensor in gathered(*_).items()}

    gathered = getattr(PlainEngine, f"{part}_tensors")
    monkeypatch.setattr(PlainEngine, f"{part}_tensors", empty)
    message = rf"step-00000002/{part}.*: [0-9]+ of another shape \(.* \(0,\) found.*not written"
    with pytest.raises(CheckpointError, match=message):
        pico_fit(PicoStep(), tmp_path, PLAN)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_runs_of_different_precision_follow_each_other_in_one_process(tmp_path: Path) -> None:
    losses = []
    for name, precision in (("a", "fp32"), ("b", "bf16"), ("c", "fp32")):
        memory = Memory()
        pico_fit(PicoStep(), tmp_path / name, replace(PLAN, precision=precision), tracker=memory)
        losses.append([metrics.loss for metrics in memory.steps])
    assert losses[0] == losses[2]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_bf16_keeps_the_weights_in_float32(tmp_path: Path) -> None:
    step = PicoStep()
    pico_fit(step, tmp_path, replace(PLAN, precision="bf16"))
    assert {weight.dtype for weight in step.parameters()} == {torch.float32}


def test_nothing_outlives_a_run(tmp_path: Path) -> None:
    watched = []
    for name in "ab":
        step, batches = PicoStep(), PicoBatches()
        pico_fit(step, tmp_path / name, PLAN, batches=batches)
        assert all(weight.grad is None for weight in step.parameters())
        assert step.training
        watched += [weakref.ref(step), weakref.ref(batches)]
        del step, batches
    gc.collect()
    assert [reference() for reference in watched] == [None] * 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_too_late_for_the_loop_is_not_lost(number: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda found, frame: heard.append(found))
    try:
        with StopSignals():
            os.kill(os.getpid(), number)
        assert heard == [number]
        with pytest.raises(Interrupted), StopSignals():
            os.kill(os.getpid(), number)
            raise Interrupted("acted on")
        assert heard == [number]
    finally:
        signal.signal(number, before)


class SignalElsewhere(Processes):
    """The processes of a training, of which another one got SIGTERM."""

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        return [values[0], values[1] + 1.0, *values[2:]]


def test_a_signal_to_another_process_during_validation_is_told_as_what_it_is() -> None:
    step, processes = PicoStep(), SignalElsewhere(plain_accelerator())
    with StopSignals() as signals:
        found = validate(
            step,
            held_out(),
            engine=PlainEngine(step, PLAN, processes),
            processes=processes,
            signals=signals,
            step_number=1,
        )
    assert found == (0.0, 1.0)
