"""Fine-tune copies of a model for the suites that score such, each once: through the one training loop.

A fine-tuning is a stage: it is found again by the model, the examples, the seed and the settings, an
interrupted one goes on from its checkpoint, and what stays of it are its scores with those of single
examples, not the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.results import Json as Fact
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.stage_store import Json, Key
from stlm_kd.data.tokenizers import load_tokenizer, tokenizer_identity
from stlm_kd.distillation.step import StepModule
from stlm_kd.distillation.terms import Term
from stlm_kd.distributed import first_process_runs, process_rank
from stlm_kd.errors import ModelError
from stlm_kd.eval import SUITES
from stlm_kd.eval.fine_tuning import conll2003, glue, squad
from stlm_kd.eval.fine_tuning.base import Settings, Tuning
from stlm_kd.losses import LABELS
from stlm_kd.models.load import load_config
from stlm_kd.models.positions import num_positions
from stlm_kd.pipeline.builders.data import BatchSizes
from stlm_kd.pipeline.context import Workshop
from stlm_kd.pipeline.fine_tuning.conll2003 import ner_subjects
from stlm_kd.pipeline.fine_tuning.glue import glue_subjects
from stlm_kd.pipeline.fine_tuning.squad import squad_subjects
from stlm_kd.pipeline.fine_tuning.tasks import Reading, Subject
from stlm_kd.pipeline.identity import model_identity
from stlm_kd.pipeline.jobs import PrefixedLines
from stlm_kd.pipeline.stages.student import tenth
from stlm_kd.recipe import hash_of
from stlm_kd.tracking import Trackers, open_tracker
from stlm_kd.training import FitResult, FitSettings, fit

STAGE = "fine-tuned"
SUBJECTS: Mapping[str, Callable[[Sequence[Tuning]], Sequence[Subject]]] = {
    glue.SUITE: glue_subjects,
    conll2003.SUITE: ner_subjects,
    squad.SUITE: squad_subjects,
}
"""By suite, what its fine-tunings have to do with; a new suite is a row here and in ``eval.tuned_suites``."""

_RESULTS = "results.json"
_LEAST_BETWEEN_CHECKPOINTS = 250


def tuned_scores(suite: str, options: Mapping[str, Any], model: str, workshop: Workshop) -> list[SuiteResult]:
    """The scores of all fine-tunings of a model that a suite asks for; finished ones are found again.

    For each task and seed there is a result for each part that is scored; and for each seed the average,
    where there are several tasks. All processes of a command call this together.

    Args:
        suite: Its name.
        options: Its options.
        model: Folder or Hub id of a language model, or of a body without a head.
        workshop: Where the stages are.

    Raises:
        EnvironmentFault, DataError: Data that is not there, or does not fit the task.
        ModelError: A model without a fitting head in its family, or that reads padded rows otherwise.
        Interrupted, Preempted: SIGINT or SIGTERM came; what was being trained is saved.
    """
    subjects = checked_subjects(suite, options)
    by_seed: dict[int, list[SuiteResult]] = {}
    for subject in subjects:
        key = _key(subject, model, workshop)

        def build(folder: Path, subject: Subject = subject, key: Key = key) -> None:
            _fine_tune(subject, model, workshop, folder, fingerprint=hash_of(dict(key)))

        folder = workshop.stages.make(STAGE, key, build, together=True)
        by_seed.setdefault(subject.tuning.seed, []).extend(_read(folder))
    several = len({subject.tuning.task for subject in subjects}) > 1
    results = [result for found in by_seed.values() for result in found]
    if suite == glue.SUITE and several:
        results += [
            replace(glue.average(found), report={"fine_tuning": {"seed": seed}})
            for seed, found in by_seed.items()
        ]
    return results


def checked_subjects(suite: str, options: Mapping[str, Any]) -> Sequence[Subject]:
    """What a suite's fine-tunings have to do with, of which everything is read once.

    Raises:
        EnvironmentFault: Data that is not there: all that is missing.
        DataError: Labels outside a task's, or a share that leaves a class without an example.
        UsageError: Settings that a preset does not have.
    """
    tunings = SUITES[suite](**options)
    assert isinstance(tunings, tuple)
    subjects = SUBJECTS[suite](tunings)
    for subject in subjects:
        subject.check()
    return subjects


def _key(subject: Subject, model: str, workshop: Workshop) -> Key:
    """Everything that decides the scores."""
    tuning, trust = subject.tuning, workshop.trust_remote_code
    settings: dict[str, Json] = json.loads(json.dumps(asdict(tuning.settings)))
    return {
        "model": model_identity(model, trust_remote_code=trust),
        "tokenizer": tokenizer_identity(load_tokenizer(model, trust_remote_code=trust)),
        "suite": tuning.suite,
        "task": tuning.task,
        "examples": subject.key(),
        "fraction": tuning.fraction,
        "context": _context(subject, model, workshop),
        "stride": tuning.stride,
        "settings": settings,
        "seed": tuning.seed,
    }


def _context(subject: Subject, model: str, workshop: Workshop) -> int:
    """As given; else the suite's own, or as many positions as the model has."""
    if subject.tuning.context is not None:
        return subject.tuning.context
    positions = num_positions(load_config(model, trust_remote_code=workshop.trust_remote_code))
    return min(subject.context, positions or subject.context)


def _fine_tune(subject: Subject, name: str, workshop: Workshop, folder: Path, *, fingerprint: str) -> None:
    """Train a copy of the model and write its scores into the folder."""
    tuning, trust = subject.tuning, workshop.trust_remote_code
    context = _context(subject, name, workshop)
    positions = num_positions(load_config(name, trust_remote_code=trust))
    if positions is not None and positions < context:
        raise ModelError(f"{name}: it reads at most {positions} tokens, but context is {context}; shorten it")
    tokenizer = load_tokenizer(name, trust_remote_code=trust)
    model = subject.model(name, tokenizer, context=context, trust=trust)
    material = subject.material(tokenizer, context=context)
    head = subject.head(model)
    sizes = BatchSizes(
        tuning.settings.effective_batch, tuning.settings.micro_batch or tuning.settings.effective_batch
    )
    stream = material.stream(sizes, seed=tuning.seed)
    steps = tuning.settings.steps or tuning.settings.epochs * stream.steps_per_epoch
    tracker = _tracker(subject, workshop, folder)
    for note in material.notes:
        tracker.note(note)
    try:
        trained = fit(
            StepModule(model, [Term(LABELS, LABELS)]),
            stream,
            _fit_settings(tuning.settings, steps, tuning.seed, workshop),
            folder=folder,
            validation=None,
            tracker=tracker,
            resume=workshop.resume,
            fingerprint=fingerprint,
        )
    finally:
        tracker.close()

    def write() -> None:
        found = subject.scores(model, tokenizer, context=context)
        facts = _facts(subject, head, material, trained, context)
        told = [_told(result, subject, head, facts, model) for result in found]
        write_json(folder / _RESULTS, [result.to_json() for result in told])

    first_process_runs(write)


def _fit_settings(settings: Settings, steps: int, seed: int, workshop: Workshop) -> FitSettings:
    return FitSettings(
        steps=steps,
        learning_rate=settings.learning_rate,
        schedule="linear",
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        betas=(0.9, 0.999),
        eps=settings.eps,
        bias_correction=settings.bias_correction,
        clip=1.0,
        precision=settings.precision,
        checkpoint_every=max(_LEAST_BETWEEN_CHECKPOINTS, tenth(steps)),
        log_every=max(1, steps // 20),
        seed=seed,
        zero=workshop.zero,
    )


def _tracker(subject: Subject, workshop: Workshop, folder: Path) -> Trackers:
    """Progress and ``metrics.jsonl``; only the first process tells them."""
    if process_rank() > 0:
        return Trackers()
    tuning = subject.tuning
    stream = PrefixedLines(workshop.quiet_name) if workshop.quiet_name else None
    tracker = open_tracker(folder, run_name=workshop.run_name, stream=stream, unit=subject.unit)
    tracker.stage(f"{tuning.suite} {tuning.task} seed {tuning.seed}")
    return tracker


def _facts(
    subject: Subject, head: str, material: Reading, trained: FitResult, context: int
) -> dict[str, Fact]:
    """How a model was fine-tuned, for the report of its scores."""
    tuning = subject.tuning
    settings: dict[str, Fact] = asdict(tuning.settings)
    return {
        "task": tuning.task,
        "seed": tuning.seed,
        "fraction": tuning.fraction,
        "training_rows": material.num_rows,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 1),
        "context": context,
        "head": head,
        "settings": settings,
    }


def _told(
    result: SuiteResult, subject: Subject, head: str, facts: dict[str, Fact], model: PreTrainedModel
) -> SuiteResult:
    """The result with what a reader must know: the head, the data, and how it was fine-tuned."""
    about = f"{result.suite}: fine-tuned with a fresh head on {head} ({model.config.model_type})"
    notes = (*result.notes, about, *subject.notes)
    return replace(result, notes=notes, report={**result.report, "fine_tuning": facts})


def _read(folder: Path) -> list[SuiteResult]:
    content = json.loads((folder / _RESULTS).read_text(encoding="utf-8"))
    return [SuiteResult.from_json(entry) for entry in content]
