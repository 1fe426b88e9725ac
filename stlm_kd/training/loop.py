"""``fit``: the training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

from torch import Tensor, nn

from stlm_kd.activity import Activity, doing
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.distributed import on_main_process, require_all_processes
from stlm_kd.tracking.metrics import StepMetrics, Tracker, ValidationMetrics
from stlm_kd.training.backends.choice import open_engine
from stlm_kd.training.checkpoint import (
    START_AFRESH,
    CheckpointStore,
    TensorShapes,
    TrainingState,
    Validation,
)
from stlm_kd.training.config import TrainingConfig
from stlm_kd.training.optimizer_step import Updater, UpdateReport
from stlm_kd.training.processes import Processes
from stlm_kd.training.protocols import BatchSource, Engine, FitResult, TrainStep
from stlm_kd.training.signals import StopFlags, StopSignals, stopped, stopped_unsaved
from stlm_kd.training.validation import validate

Batches = Callable[[], Iterable[AnyBatch]]


def fit(
    step: TrainStep,
    batches: BatchSource,
    settings: TrainingConfig,
    *,
    folder: Path,
    validation: Batches | None,
    tracker: Tracker,
    resume: bool,
    fingerprint: str,
) -> FitResult:
    """Train the parameters of ``step`` with ``requires_grad``; leaves the best or last weights in the module.

    The step is moved to ``current_device``; its frozen parameters are neither changed nor saved. ``batches``
    and ``validation`` give this process's share; with ``keep="best"`` the initial weights are validated too
    and may be the best. Checkpoints go to ``folder / "checkpoints"``, on a file system shared by all
    processes; without ``resume`` existing ones are deleted. ``fingerprint`` identifies model, data and
    settings, but not ``zero`` and the number of processes: a checkpoint of any engine can be resumed with any
    other. The ``tracker`` is empty on all but the main process.

    On a CPU with the same engine and number of threads and processes, a resumed run ends bit for bit like an
    uninterrupted one. Any split of a step's batches into micro-batches and processes gives the same gradient,
    except for dropout, which each process draws separately.

    Raises:
        StlmKdError: one of several processes calls it within ``on_main_process``.
        NonFiniteError: a loss or gradient is NaN or infinite; the weights are unchanged.
        DivergedError: before a checkpoint, the weights of the processes differ.
        MissingResourceError: the processes cannot connect, or DeepSpeed is required but not installed.
        CheckpointError: a checkpoint cannot be written or read, or has another fingerprint.
        RemoteProcessError: in the other processes, after a ``CheckpointError`` in the main process.
        DataError: the validation data has no labelled token.
        UsageError: the time that SIGTERM leaves is no number, see ``training.deadline``.
        Interrupted, Preempted: SIGINT or SIGTERM; a checkpoint was saved, except after three SIGINTs. A
            process that cannot save within SIGTERM's time is ended with Preempted's code.
    """
    assert isinstance(step, nn.Module)
    require_all_processes("fit")
    assert settings.num_steps >= 1 and settings.log_every >= 1
    assert validation is not None or (settings.keep == "last" and settings.patience is None)
    was_training = step.training
    shapes = TensorShapes.of(step)
    store = CheckpointStore(folder / "checkpoints", fingerprint, settings.keep_checkpoints or 2)
    with StopSignals(store.last) as signals, open_engine(step, settings) as (processes, engine):
        training = _Training(
            step, step, batches, settings, validation, tracker, processes, engine, signals, store, shapes
        )
        try:
            with doing(tracker.title, unit="step", total=settings.num_steps, pace="steps") as progress:
                return training.run(resume, progress)
        except KeyboardInterrupt as error:
            raise stopped_unsaved(training.state.step, store.last()) from error
        finally:
            step.train(was_training)


@dataclass
class _Pace:
    """Training throughput, without validation and checkpoints."""

    steps: int = 0
    seconds: float = 0.0
    recent_tokens: int = 0
    recent_seconds: float = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.steps += 1
        self.seconds += seconds
        self.recent_tokens += tokens
        self.recent_seconds += seconds

    def read(self) -> tuple[float, float]:
        """Tokens per second since the last call, and seconds per step since the beginning."""
        tokens_per_second = self.recent_tokens / max(self.recent_seconds, 1e-9)
        self.recent_tokens, self.recent_seconds = 0, 0.0
        return tokens_per_second, self.seconds / max(self.steps, 1)


@dataclass
class _Training:
    """One call of ``fit``: ``run`` alternates optimizer steps with due validations and checkpoints."""

    step: TrainStep
    module: nn.Module  # the step itself
    batches: BatchSource
    settings: TrainingConfig
    validation: Batches | None
    tracker: Tracker
    processes: Processes
    engine: Engine
    signals: StopSignals
    store: CheckpointStore
    shapes: TensorShapes
    state: TrainingState = field(default_factory=TrainingState)
    saved_step: int | None = None
    pace: _Pace = field(default_factory=_Pace)
    started: float = field(default_factory=time.monotonic)

    def run(self, resume: bool, progress: Activity) -> FitResult:
        """Train from the newest checkpoint, or from the beginning."""
        self._begin(resume)
        progress.advance(self.state.step)
        self.module.train()
        updater = Updater(self.step, self.settings, self.processes, self.engine, self.signals)
        self._stop_if_told()
        while True:
            validated = self._validation_is_due() and self._validate()
            ended = self._ended()
            if self._checkpoint_is_due(ended) and (validated or self.saved_step != self.state.step):
                self._save()
                if ended is None:
                    self._stop_if_told()
            if ended is not None:
                return self._finish(ended)
            self._train_step(updater)
            progress.advance()

    def _begin(self, resume: bool) -> None:
        step = on_main_process(lambda: self._find(resume))
        if step is not None:
            self.state = self.store.read_state(step)
            self._load_weights(step)
            if step > 0:  # before the first step the optimizer has no state
                found = self.store.tensors(step, "optimizer")
                self.shapes.check_optimizer(found, place=self.store.path(step), cure=START_AFRESH)
                self.engine.load_optimizer_tensors(found)
            self.saved_step = step
        self.started = time.monotonic() - self.state.seconds
        self.tracker.rewind(self.state.step)
        if self.state.history and self.state.history[-1].step == self.state.step:
            self._report_validation(self.state.history[-1])

    def _load_weights(self, step: int) -> None:
        self.engine.load_model_tensors(self.store.tensors(step, "model"), place=self.store.path(step))

    def _find(self, resume: bool) -> int | None:
        """On the main process: the step of the checkpoint to resume from; None without one."""
        if not resume:
            self.store.clear()
            return None
        found = self.store.newest()
        for note in found.notes:
            self.tracker.note(note)
        return found.state.step if found.state is not None else None

    def _train_step(self, updater: Updater) -> None:
        began = time.monotonic()
        report = updater.update(self.state.step, self.batches.step(self.state.step))
        if isinstance(report, tuple):
            self._stop(report)
        self.state = replace(self.state, step=self.state.step + 1, tokens=self.state.tokens + report.tokens)
        self.pace.add(report.tokens, time.monotonic() - began)
        if self.settings.is_logged(self.state.step):
            self._log(report)
        if any(report.stop):
            self._stop(report.stop)

    def _log(self, report: UpdateReport) -> None:
        tokens_per_second, seconds_per_step = self.pace.read()
        self.tracker.step(
            StepMetrics(
                step=self.state.step,
                steps=self.settings.num_steps,
                loss=report.loss,
                losses=report.losses,
                measures=report.measures,
                learning_rate=report.learning_rate,
                grad_norm=report.grad_norm,
                tokens=self.state.tokens,
                tokens_per_second=tokens_per_second,
                seconds=time.monotonic() - self.started,
                seconds_left=seconds_per_step * (self.settings.num_steps - self.state.step),
            )
        )

    def _validation_is_due(self) -> bool:
        if self.validation is None:
            return False
        if self.state.history and self.state.history[-1].step == self.state.step:
            return False
        if self.state.step == 0:  # a candidate for the best weights
            return self.settings.keep == "best"
        step, every = self.state.step, self.settings.validate_every
        return step == self.settings.num_steps or (every is not None and step % every == 0)

    def _validate(self) -> bool:
        assert self.validation is not None
        found = validate(
            self.step,
            self.validation(),
            engine=self.engine,
            processes=self.processes,
            signals=self.signals,
            step_number=self.state.step,
        )
        if isinstance(found, tuple):
            self._stop(found)
        result = Validation(self.state.step, found)
        self.state = replace(self.state, history=(*self.state.history, result))
        if self.state.best_loss is None or found["labels"] < self.state.best_loss:
            self.state = replace(self.state, best_step=self.state.step, best_loss=found["labels"])
        self._report_validation(result)
        return True

    def _report_validation(self, result: Validation) -> None:
        is_best, steps = self.state.best_step == result.step, self.settings.num_steps
        self.tracker.validation(ValidationMetrics(result.step, steps, result.losses, is_best))

    def _ended(self) -> Literal["done", "early-stop"] | None:
        if self.state.step >= self.settings.num_steps:
            return "done"
        since_best = sum(result.step > (self.state.best_step or 0) for result in self.state.history)
        patience = self.settings.patience
        return "early-stop" if patience is not None and since_best >= patience else None

    def _checkpoint_is_due(self, ended: str | None) -> bool:
        every = self.settings.checkpoint_every
        improved = self.settings.keep == "best" and self.state.best_step == self.state.step
        if self.state.step == 0:
            return improved
        return ended is not None or improved or (every is not None and self.state.step % every == 0)

    def _save(self) -> None:
        with doing("saving a checkpoint"):
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        self.state = replace(self.state, seconds=time.monotonic() - self.started)
        model = self.engine.model_tensors()
        optimizer = self.engine.optimizer_tensors()
        on_main_process(lambda: self._write(model, optimizer))
        self.saved_step = self.state.step

    def _write(self, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
        """On the main process: check that all was gathered, and write it."""
        cure = "not written, the last checkpoint is kept: resume from it with another engine"
        place = self.store.path(self.state.step)
        self.shapes.check_model(model, place=place, cure=cure)
        if self.state.step > 0:
            self.shapes.check_optimizer(optimizer, place=place, cure=cure)
        self.store.save(self.state, model=model, optimizer=optimizer)

    def _stop_if_told(self) -> None:
        """Stop after what took long outside of the steps: setting up, and writing a checkpoint."""
        interrupts, preemptions = self.processes.sum_numbers(self.signals.flags)
        if interrupts or preemptions:
            self._stop((interrupts, preemptions))

    def _stop(self, flags: StopFlags) -> NoReturn:
        if self.saved_step != self.state.step:
            self._save()
        raise stopped(flags, self.state.step, str(self.store.path(self.state.step)))

    def _finish(self, why: Literal["done", "early-stop"]) -> FitResult:
        best = self.state.best_step
        if self.settings.keep == "best" and best is not None and best != self.state.step:
            on_main_process(lambda: self.store.verified_state(best).step)
            self._load_weights(best)
            if best == 0:
                self.tracker.note("no validation was better than that before the first step: kept step 0")
        return FitResult(
            steps=self.state.step,
            tokens=self.state.tokens,
            best_step=best,
            best_loss=self.state.best_loss,
            validation_history=self.state.history,
            seconds=self.state.seconds,
            stopped=why,
        )
