"""Fine-tune copies of a model for downstream tasks, with the shared training loop.

A fine-tuning is a stage with model, examples, seed and settings as key. An interrupted one resumes from its
checkpoint. The stage keeps the scores, also per example, but not the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stlm_kd.artifacts.atomic import read_json, write_json
from stlm_kd.artifacts.results import Json as Fact
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Key
from stlm_kd.data.labelled.batches import Tokenised
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import on_main_process
from stlm_kd.errors import ModelError
from stlm_kd.eval import SUITES
from stlm_kd.eval.fine_tuning.base import FineTuneJob, FineTuneTask
from stlm_kd.losses import LABELS
from stlm_kd.models.load import load_config
from stlm_kd.models.positions import num_positions
from stlm_kd.pipeline.builders.data import batch_sizes, example_stream, row_multiple
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.jobs import PrefixedLines
from stlm_kd.pipeline.stage_keys import fine_tune_key
from stlm_kd.recipe import hash_of
from stlm_kd.tracking import Trackers, open_tracker
from stlm_kd.training import TrainingConfig
from stlm_kd.training.loop import fit
from stlm_kd.training.protocols import FitResult

STAGE = "fine-tuned"
_RESULTS = "results.json"
_LEAST_BETWEEN_CHECKPOINTS = 250


def tuned_scores(
    suite: str, options: Mapping[str, Any], model: str, context: RunContext
) -> list[SuiteResult]:
    """Fine-tune a model on all tasks of a suite and return the scores; finished fine-tunings are reused.

    There is one result per task, seed and scored part, and with several tasks an average per seed. All
    processes of a command must call this together.

    Raises:
        MissingResourceError, DataError: The data is missing or does not fit the task.
        ModelError: The model's family has no suitable head, or padding changes the model's outputs.
        Interrupted, Preempted: SIGINT or SIGTERM was received; a checkpoint is saved.
    """
    tasks = SUITES[suite].fine_tune_tasks(options)
    on_main_process(lambda: _check_all(tasks))
    by_seed: dict[int, list[SuiteResult]] = {}
    for task in tasks:
        length = _context(task, model, context)
        key = on_main_process(partial(_key, task, model, length, context))

        def build(folder: Path, task: FineTuneTask[Any] = task, key: Key = key) -> None:
            _fine_tune(task, model, context, folder, fingerprint=hash_of(dict(key)))

        what = f"{suite} {task.job.task} seed {task.job.seed} of {context.described(model)}"
        folder = context.stages.make(STAGE, key, build, what=what, together=True)
        saved = read_json(folder / _RESULTS, nan=True)
        by_seed.setdefault(task.job.seed, []).extend(map(SuiteResult.from_json, saved))
    results = [result for found in by_seed.values() for result in found]
    if len({task.job.task for task in tasks}) > 1:
        means = [(seed, tasks[0].average(found)) for seed, found in by_seed.items()]
        results += [replace(mean, report={"fine_tuning": {"seed": seed}}) for seed, mean in means if mean]
    data = versions_of_data(suite, options)
    return [replace(result, data=data) for result in results]


def versions_of_data(suite: str, options: Mapping[str, Any]) -> dict[str, str]:
    """``SuiteResult.data`` of a suite with these options."""
    found: dict[str, str] = {}
    for task, read in SUITES[suite].data_by_task(options).items():
        found |= {name: repo.commit for name, repo in read.repos.items()}
        found |= {} if read.local is None else {task: read.local}
    return found


def _check_all(tasks: Sequence[FineTuneTask[Any]]) -> None:
    for task in tasks:
        task.check()


def _key(task: FineTuneTask[Any], model: str, length: int, context: RunContext) -> Key:
    return fine_tune_key(task, model, length=length, trust=context.trust_remote_code)


def _context(task: FineTuneTask[Any], model: str, context: RunContext) -> int:
    """The configured context, or the suite's default limited to the model's positions."""
    if task.job.context is not None:
        return task.job.context
    positions = num_positions(load_config(model, trust_remote_code=context.trust_remote_code))
    return min(task.context, positions or task.context)


def _fine_tune(
    task: FineTuneTask[Any], name: str, context: RunContext, folder: Path, *, fingerprint: str
) -> None:
    job, trust = task.job, context.trust_remote_code
    length = _context(task, name, context)
    positions = num_positions(load_config(name, trust_remote_code=trust))
    if positions is not None and positions < length:
        raise ModelError(f"{name}: it reads at most {positions} tokens, but context is {length}; shorten it")
    tokenizer = load_tokenizer(name, trust_remote_code=trust)
    model = task.model(name, tokenizer, trust=trust)

    def prepared() -> tuple[Tokenised, tuple[str, ...]]:
        task.check_model(model, context=length, name=name)
        return task.encoded(tokenizer, context=length, multiple=row_multiple())

    rows, notes = on_main_process(prepared)
    head = task.head(model)
    stream = example_stream(rows, batch_sizes(job.settings), seed=job.seed)
    tracker = _tracker(task, context, folder)
    for note in notes:
        tracker.note(note)
    try:
        trained = fit(
            DistillationStep(model, [Term(LABELS, LABELS)]),
            stream,
            context.with_engine(_settings(job, stream.steps_per_epoch)),
            folder=folder,
            validation=None,
            tracker=tracker,
            resume=context.resume,
            fingerprint=fingerprint,
        )
    finally:
        tracker.close()

    def write() -> None:
        found = task.scores(model, tokenizer, context=length)
        facts = _facts(job, head, len(rows), trained, length)
        results = [_with_notes(result, task, head, facts, model) for result in found]
        write_json(folder / _RESULTS, [result.to_json() for result in results])

    on_main_process(write)


def _settings(job: FineTuneJob, steps_per_epoch: int) -> TrainingConfig:
    settings = job.settings
    assert settings.epochs is not None
    steps = settings.steps or settings.epochs * steps_per_epoch
    return replace(
        settings,
        steps=steps,
        checkpoint_every=max(_LEAST_BETWEEN_CHECKPOINTS, math.ceil(steps / 10)),
        log_every=max(1, steps // 20),
        seed=job.seed,
    )


def _tracker(task: FineTuneTask[Any], context: RunContext, folder: Path) -> Trackers:
    job = task.job
    stream = PrefixedLines(context.quiet_name) if context.quiet_name else None
    tracker = open_tracker(folder, run_name=context.run_name, stream=stream, unit=task.unit)
    tracker.stage(f"{job.suite} {job.task} seed {job.seed}")
    return tracker


def _facts(job: FineTuneJob, head: str, num_rows: int, trained: FitResult, context: int) -> dict[str, Fact]:
    """The settings and cost of a fine-tuning, for the report."""
    return {
        "task": job.task,
        "seed": job.seed,
        "fraction": job.fraction,
        "training_rows": num_rows,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "context": context,
        "head": head,
        "settings": job.reported_settings(),
    }


def _with_notes(
    result: SuiteResult, task: FineTuneTask[Any], head: str, facts: dict[str, Fact], model: PreTrainedModel
) -> SuiteResult:
    about = f"{result.suite}: fine-tuned with a fresh head on {head} ({model.config.model_type})"
    notes = (*result.notes, about, *task.notes)
    return replace(result, notes=notes, report={**result.report, "fine_tuning": facts})
