"""The command ``eval``: score any models with any suites."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PretrainedConfig

from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.run_dir import RECORD, model_of
from stlm_kd.data.labelled.examples import LabelledSource, read_examples
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.sources.sources import documents as read_documents
from stlm_kd.errors import ModelError, UsageError
from stlm_kd.eval import SUITES
from stlm_kd.models.heads.class_names import is_unnamed
from stlm_kd.models.heads.classifiers import class_names, kind_of
from stlm_kd.models.load import declared_task, load_config
from stlm_kd.models.positions import num_positions
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.examples import labelled_sources
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.pipeline.checks.overlap import note_trained_on
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.score import SuiteCall, check_rows, score
from stlm_kd.pipeline.stages.teacher_set import TeacherSet, teachers_of_run
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import recipe_of
from stlm_kd.recipe.suites import suites as all_options

LABELLED = {"classification", "regression"}  # the tasks of labelled examples


def evaluate(
    models: Sequence[str | PathLike[str]],
    suites: Sequence[str | Mapping[str, Any]],
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    data: Sequence[str | PathLike[str]] = (),
    text: Sequence[str] | None = None,
    label: str | None = None,
    teachers: Sequence[str | PathLike[str]] = (),
    trust_remote_code: bool = False,
    output_dir: str | PathLike[str] = "runs",
    resume: bool = True,
) -> dict[str, list[SuiteResult]]:
    """Score each model; return the results by model name as given.

    Args:
        models: Runs, model folders or Hub ids, all different.
        suites: Each a name, or ``{"suite": name, **options}``.
        options: Further options, each for the suites that have it and do not set it.
        data: Files of held-out text or labelled examples, for suites that read them; empty for those of each
            model's run.
        text: The text columns of labelled examples; None for those of the model's run.
        label: The label column of labelled examples; None for that of the model's run.
        teachers: Runs, model folders or Hub ids for suites that compare with teachers; empty for the teachers
            of each model's run.
        trust_remote_code: Whether to run code shipped with a model.
        output_dir: Contains the stages, which cache fine-tunings.
        resume: Whether to resume unfinished fine-tunings.

    Raises:
        UsageError: A model is given twice; a suite or option is unknown; a suite lacks text; the columns are
            not those of the model's run; or no suite uses the given options, data, columns or teachers.
        ModelError: A suite does not apply to the model's task.
    """
    if not models or not suites:
        raise UsageError(f"no {'suite' if models else 'model'} given; expected at least one")
    names, files, others = ([fspath(one) for one in given] for given in (models, data, teachers))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{', '.join(twice)}: given twice")
    calls = [
        SuiteCall(str(entry["suite"]), {key: value for key, value in entry.items() if key != "suite"})
        for entry in all_options(suites, options=options)
    ]
    scored = [_model(name, trust=trust_remote_code) for name in names]
    needed = {
        SUITES[call.suite].task or kind_of(scored[0].config)
        for call in calls
        if SUITES[call.suite].reads_held_out(call.options)
    }
    labelled = needed & LABELLED
    if (labelled and needed != labelled) or len(labelled) > 1:
        raise UsageError(
            "--suite: suites of text, of classes and of numbers score different models; run eval for each"
        )
    for model in scored:
        _check_kind(model.name, model.config, calls)
    compares = any(SUITES[call.suite].teachers for call in calls)
    for option, is_given, is_read, reading in (
        ("--data", bool(files), needed, "reads held-out data"),
        ("--text", text is not None, labelled, "reads labelled examples"),
        ("--label", label is not None, labelled, "reads labelled examples"),
        ("--teacher", bool(others), compares, "compares with teachers"),
    ):
        if is_given and not is_read:
            used = ", ".join(dict.fromkeys(call.suite for call in calls))
            raise UsageError(f"{option}: nothing of {used} {reading}; leave it out, or add a suite that does")
    check_rows(calls)
    sizes = [model.longest_row for model in scored]
    calls = [replace(call, window=SUITES[call.suite].common_window(sizes)) for call in calls]
    context = RunContext(Path(output_dir), resume, trust_remote_code)
    results = {}
    for model in scored:
        columns = _columns(model, text, label) if labelled else None
        held: HeldOut = read_held_out(files, columns, model.name, labelled) if files else []
        if files and model.recipe is not None:
            note_trained_on(model.name, model.recipe, files, held)
        if needed and not held:
            held = held_out_of_runs([model.name]).get(model.name, [])
            if not held:
                raise UsageError(
                    f"{model.name}: the suites need held-out data, but this is no run with some; "
                    "give --data FILE"
                )
        beside = _beside(model, others) if compares else None
        results[model.name] = score(model.folder, calls, held, context=context, beside=beside)
    return results


@dataclass(frozen=True, slots=True)
class _Model:
    """A model to score: as named, its folder or Hub id, its configuration, and its run with the recipe."""

    name: str
    folder: str
    config: PretrainedConfig
    run: Path | None
    recipe: Recipe | None

    @property
    def longest_row(self) -> int | None:
        """The context of its run's recipe, limited by its positions."""
        positions = num_positions(self.config)
        if self.recipe is None:
            return positions
        context = self.recipe.data.context
        return context if positions is None else min(context, positions)


def _model(name: str, *, trust: bool) -> _Model:
    folder = model_of(name)
    config = load_config(folder, trust_remote_code=trust)  # refuses what is no name
    run = _run_of(name)
    return _Model(name, folder, config, run, None if run is None else recipe_of(run))


def _beside(model: _Model, given: Sequence[str]) -> TeacherSet:
    """The teachers of the command line, or those of the model's run with its recipe."""
    if given:
        return TeacherSet({teacher: model_of(teacher) for teacher in given}, None)
    known = {} if model.run is None else teachers_of_run(model.run)
    if not known:
        raise UsageError(
            f"{model.name}: the suite compares with teachers, but the model belongs to no run with teachers; "
            "give --teacher MODEL"
        )
    return TeacherSet(known, model.recipe)


def _check_kind(name: str, config: PretrainedConfig, calls: Sequence[SuiteCall]) -> None:
    """Check that the suites apply to the model: a language model, a classifier or a regression model."""
    kind = kind_of(config)
    for call in calls:
        suite = SUITES[call.suite]
        needed = suite.task
        if kind is not None and suite.fine_tunes:
            raise ModelError(
                f"{name}: a {config.model_type} model with a head for {kind} already; {call.suite} gives "
                "language models and bodies a fresh one; name the model that it was made from"
            )
        if kind == "regression" and suite.teachers:
            raise ModelError(f"{name}: {call.suite} compares distributions, which a regression model lacks")
        if kind is not None and needed not in (None, kind):
            what = "classifier" if kind == "classification" else "regression model"
            raise ModelError(
                f"{name}: a {config.model_type} {what}, which {call.suite} does not score; use {kind}"
            )
        if kind is None and needed in LABELLED:
            fitting = "masked-loss" if declared_task(config) == "mlm" else "perplexity"
            raise ModelError(
                f"{name}: a {config.model_type} language model, which does no {needed}; "
                f"use {fitting}, or a model that was trained for task: {needed}"
            )


def _columns(model: _Model, text: Sequence[str] | None, label: str | None) -> tuple[tuple[str, ...], str]:
    """The text and label columns: as given, or from the recipe of the model's run."""
    own = model.recipe
    if own is None or own.task not in LABELLED:
        return tuple(text or ("sentence",)), label or "label"
    (known, *_) = labelled_sources(own.data.validation or own.data.train)
    if text is not None and len(text) != len(known.text):
        raise UsageError(
            f"--text {','.join(text)}: {len(text)} given, but {model.name} was trained on {len(known.text)} "
            f"({','.join(known.text)}); name as many columns"
        )
    return tuple(text or known.text), label or known.label


def _run_of(name: str) -> Path | None:
    """The folder of the run that a model belongs to."""
    folders = (Path(name), *Path(name).resolve().parents)
    return next((folder for folder in folders if os.path.lexists(folder / RECORD)), None)


def read_held_out(
    files: Sequence[str],
    columns: tuple[tuple[str, ...], str] | None,
    model: str,
    tasks: Collection[str | None],
) -> HeldOut:
    """Read documents, or with columns labelled examples with the model's classes."""
    if columns is None:
        return [text for file in files for text in read_documents(Source(path=file))]
    sources = [LabelledSource(path=file, text=columns[0], label=columns[1]) for file in files]
    if "regression" in tasks:
        return read_examples(*sources, regression=True)
    names = class_names(load_config(model_of(model)))
    numbers = [str(place) for place in range(len(names))]
    return read_examples(*sources, labels=numbers if is_unnamed(names) else names, labels_of=model)


def held_out_of_runs(names: Sequence[str]) -> dict[str, HeldOut]:
    """The validation text or examples of the runs that models belong to, of those that have any."""
    runs = {name: run for name in names if (run := _run_of(name)) is not None}
    return {name: found for name, run in runs.items() if (found := held_out_of_recipe(recipe_of(run)))}
