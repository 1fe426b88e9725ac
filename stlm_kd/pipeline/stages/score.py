"""Score models with a recipe's suites; scores are cached as stages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import read_json, write_json
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import printable
from stlm_kd.eval import SUITES
from stlm_kd.eval.agreement.suite import AnswersOf
from stlm_kd.eval.harness.evaluate import SUITE as LM_EVAL
from stlm_kd.eval.interchange.suite import AlignedTeacher
from stlm_kd.models.heads.classifiers import load_classifier
from stlm_kd.models.load import load_language_model, to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.stage_keys import aligned_teachers_key, score_key, teachers_key
from stlm_kd.pipeline.stages.classifier_outputs import teacher_outputs
from stlm_kd.pipeline.stages.fine_tune import tuned_scores, versions_of_data
from stlm_kd.pipeline.stages.teacher_set import TeacherSet
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import from_values, values_of
from stlm_kd.recipe.schema.root import Suite
from stlm_kd.training.processes import current_device

_RESULT = "result.json"


@dataclass(frozen=True, slots=True)
class SuiteCall:
    """A suite, its options as given, and its default window; None for suites without windows."""

    suite: str
    options: Mapping[str, Any]
    window: int | None = None

    @property
    def resolved(self) -> Mapping[str, Any]:
        """The options with the default window filled in."""
        if self.window is None or self.options.get("window") is not None:
            return self.options
        return {**self.options, "window": self.window}


def suite_calls(recipe: Recipe) -> list[SuiteCall]:
    """The suites of a recipe; text suites use windows of the recipe's context, which fits all its models."""
    context = recipe.data.context
    return [
        SuiteCall(entry.suite, _options(entry, recipe), SUITES[entry.suite].common_window([context]))
        for entry in recipe.eval
    ]


def _options(entry: Suite, recipe: Recipe) -> Mapping[str, Any]:
    """The options as given; the context of classifiers defaults to that of their training."""
    options = entry.options
    if recipe.language_task is None and options.get("context", 0) is None:
        return {**options, "context": recipe.data.context}
    return options


def labels(calls: Sequence[SuiteCall]) -> list[str]:
    """A label for each call: the options that differ between calls of the same suite.

    Leaves out ``tasks``, since scores contain their names.

    >>> labels([SuiteCall("perplexity", {"window": size, "stride": 8}) for size in (None, 64)])
    ['window default', 'window 64']
    """
    return [", ".join(_differences(call, [c for c in calls if c.suite == call.suite])) for call in calls]


def _differences(call: SuiteCall, others: Sequence[SuiteCall]) -> list[str]:
    names = dict.fromkeys(name for other in others for name in other.options if name != "tasks")
    values = {name: [other.options.get(name) for other in others] for name in names}
    own = {
        name: call.options.get(name) for name, found in values.items() if found.count(found[0]) < len(found)
    }
    return [f"{name} {'default' if value is None else value}" for name, value in own.items()]


def score(
    model: str,
    calls: Sequence[SuiteCall],
    held: HeldOut,
    *,
    context: RunContext,
    beside: TeacherSet | None = None,
) -> list[SuiteResult]:
    """Score a model with each suite, loading it once; a fine-tuning suite gives several results.

    ``beside`` are the teachers, for suites that need them.
    """
    names = held.label_names if isinstance(held, Examples) else None
    trust = context.trust_remote_code
    loaded = cache(lambda: _load(model, names, trust))
    teachers_of = cache(lambda suite: _teachers_for(suite, model, loaded(), held, beside, context))
    results = [
        tuned_scores(call.suite, call.options, model, context)
        if SUITES[call.suite].fine_tunes
        else [_run_suite(model, call, loaded(), held, teachers_of)]
        for call in calls
    ]
    return _with_labels(results, calls)


def check_rows(calls: Sequence[SuiteCall]) -> None:
    """Check that tasks exist, and data and optional packages are available, before loading a model."""
    for call in calls:
        SUITES[call.suite].check(call.options)


def kept_scores(
    recipe: Recipe, model: str, context: RunContext, *, beside: TeacherSet | None = None
) -> list[SuiteResult]:
    """Score a model with the recipe's suites, each cached as a stage; loads the model only if needed.

    ``beside`` are a student's teachers; None for a teacher, which skips suites that compare with teachers.
    """
    calls = [call for call in suite_calls(recipe) if beside is not None or not SUITES[call.suite].teachers]
    trust = context.trust_remote_code
    held = cache(partial(held_out_of_recipe, recipe))
    labels = cache(lambda: None if recipe.language_task is not None else class_names_of(recipe))
    loaded = cache(lambda: _load(model, labels(), trust))
    teachers_of = cache(lambda suite: _teachers_for(suite, model, loaded(), held(), beside, context))
    results: list[list[SuiteResult]] = []
    for call in calls:
        if SUITES[call.suite].fine_tunes:
            results.append(tuned_scores(call.suite, call.options, model, context))
            continue

        def build(folder: Path, call: SuiteCall = call) -> None:
            result = _run_suite(model, call, loaded(), held(), teachers_of)
            write_json(folder / _RESULT, result.to_json())
            write_reports([result], folder)

        key = score_key(call, recipe, model, trust=trust)
        if beside is not None and (form := SUITES[call.suite].teachers):
            key["beside"] = (
                teachers_key(beside, trust=trust)
                if form == "outputs"
                else aligned_teachers_key(beside, model, trust=trust)
            )
        folder = context.stages.make("eval", key, build, what=f"{call.suite} of {context.described(model)}")
        saved = read_json(folder / _RESULT, nan=True)
        results.append([SuiteResult.from_json(saved)])
    return _with_labels(results, calls)


def fine_tune(recipe: Recipe, model: str, context: RunContext) -> None:
    """Run the fine-tunings of ``kept_scores``; all processes of the command must call this together."""
    for call in suite_calls(recipe):
        if SUITES[call.suite].fine_tunes:
            tuned_scores(call.suite, call.options, model, context)


def write_reports(results: Sequence[SuiteResult], folder: Path) -> None:
    """Write each lm-eval report, in lm-eval's format, to a folder, unless it exists already."""
    for result in results:
        if result.suite == LM_EVAL:
            path = folder / f"{file_name(f'{LM_EVAL} {result.label}')}.json"
            if not path.is_file() or read_json(path, nan=True) != result.report:
                write_json(path, result.report)


def _load(
    model: str, labels: Sequence[str] | None, trust: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a language model, or with labels (an empty sequence for regression) a classifier."""
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    if labels is None:
        loaded = load_language_model(model, None, trust_remote_code=trust)
    else:
        loaded = load_classifier(model, labels, tokenizer=tokenizer, trust_remote_code=trust)
    to_device(loaded, current_device())
    return loaded, tokenizer


def _teachers_for(
    suite: str,
    name: str,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    held: HeldOut,
    beside: TeacherSet | None,
    context: RunContext,
) -> Mapping[str, AlignedTeacher] | Mapping[str, AnswersOf]:
    """The teachers in the form that a suite needs."""
    assert beside is not None, "suites that need teachers require a teacher set"
    if SUITES[suite].teachers == "outputs":
        assert isinstance(held, Examples)
        return teacher_outputs(beside.teachers, held, context)
    return beside.taught(name, *loaded, trust=context.trust_remote_code)


def _run_suite(
    model: str,
    call: SuiteCall,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    held: HeldOut,
    teachers_of: Callable[[str], Mapping[str, AlignedTeacher] | Mapping[str, AnswersOf]],
) -> SuiteResult:
    """Run a suite, after printing its name since some take long."""
    print(printable(f"scoring {model}  {call.suite}"), file=sys.stderr, flush=True)
    with doing(f"scoring {model}  {call.suite}"):
        teachers = (teachers_of(call.suite),) if SUITES[call.suite].teachers else ()
        result = SUITES[call.suite](*loaded, held, *teachers, **call.resolved)
    assert isinstance(result, SuiteResult)
    return replace(result, data=versions_of_data(call.suite, call.resolved))


def _with_labels(results: Sequence[Sequence[SuiteResult]], calls: Sequence[SuiteCall]) -> list[SuiteResult]:
    return [
        replace(result, label=label)
        for found, label in zip(results, labels(calls), strict=True)
        for result in found
    ]


def score_models(
    recipe: Recipe,
    models: Sequence[str],
    teachers: Mapping[str, Mapping[str, str] | None],
    context: RunContext,
    jobs: int,
) -> dict[str, tuple[SuiteResult, ...]]:
    """Score models in parallel jobs; ``teachers`` are those to compare a student with, None for a teacher."""
    found = run_jobs(
        [
            Job(_score_model, (values_of(recipe), model, context.named("eval", jobs), teachers[model]))
            for model in models
        ],
        workers=jobs if recipe.eval else 1,
    )
    return {model: tuple(results) for model, results in zip(models, found, strict=True)}


def _score_model(
    values: dict[str, Any], model: str, context: RunContext, teachers: Mapping[str, str] | None
) -> list[SuiteResult]:
    """Score a student and compare it with its teachers, or score a teacher (None)."""
    recipe = from_values(values, origin="recipe")
    beside = None if teachers is None else TeacherSet(teachers, recipe)
    return kept_scores(recipe, model, context, beside=beside)
