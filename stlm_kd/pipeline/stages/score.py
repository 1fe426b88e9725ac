"""Score a model with a recipe's suites; a score is kept and found again by all that decides it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.results import SuiteResult
from stlm_kd.artifacts.run_dir import file_name
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.eval import FINE_TUNED, NEEDS_TEACHERS, SUITES
from stlm_kd.eval.agreement.suite import SUITE as AGREEMENT
from stlm_kd.eval.agreement.suite import AnswersOf
from stlm_kd.eval.interchange.suite import AlignedTeacher
from stlm_kd.eval.runner import common_window
from stlm_kd.models.heads.classifiers import load_classifier
from stlm_kd.models.load import load_language_model, to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.examples import class_names_of
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.jobs import Job, run_jobs
from stlm_kd.pipeline.stage_keys import aligned_teachers_key, score_key, teachers_key
from stlm_kd.pipeline.stages.classifier_outputs import answering
from stlm_kd.pipeline.stages.fine_tune import tuned_scores
from stlm_kd.pipeline.stages.teacher_set import TeacherSet
from stlm_kd.recipe import Recipe
from stlm_kd.recipe.load import from_values, plain
from stlm_kd.recipe.schema.root import Suite
from stlm_kd.training import current_device

LM_EVAL = "lm-eval"


@dataclass(frozen=True, slots=True)
class SuiteCall:
    """A suite by name and its options.

    Attributes:
        suite: Its name.
        options: As they were asked for.
        window: What stands in for a window that was not asked for; None of suites without one.
    """

    suite: str
    options: Mapping[str, Any]
    window: int | None = None

    @property
    def resolved(self) -> Mapping[str, Any]:
        """The options by which models are scored."""
        if self.window is None or self.options.get("window") is not None:
            return self.options
        return {**self.options, "window": self.window}


def suite_calls(recipe: Recipe) -> list[SuiteCall]:
    """The suites of a recipe; those of text in windows of its context, which all its models can read."""
    context = recipe.data.context
    return [
        SuiteCall(entry.suite, _options(entry, recipe), common_window(entry.suite, [context]))
        for entry in recipe.eval
    ]


def _options(entry: Suite, recipe: Recipe) -> Mapping[str, Any]:
    """As given; a classifier reads as much of an example as in its training, where nothing else is said."""
    options = entry.options
    if recipe.language_task is None and options.get("context", 0) is None:
        return {**options, "context": recipe.data.context}
    return options


def labels(calls: Sequence[SuiteCall]) -> list[str]:
    """What tells each call from the others of its suite: the options in which they differ.

    ``tasks`` are left out, since scores bear their names.

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
    """What each suite says of a model, which is loaded once; of one that fine-tunes it, several results.

    Args:
        model: Folder or Hub id.
        calls: Suites with their options.
        held: Held-out text, or labelled examples for classifiers.
        context: Where fine-tunings and what teachers say are kept, and whether the model may run code that
            it brings.
        beside: The teachers, for suites that need them.
    """
    names = held.label_names if isinstance(held, Examples) else None
    trust = context.trust_remote_code
    loaded = cache(lambda: _load(model, names, trust))
    taught = cache(lambda suite: _taught(suite, model, loaded(), held, beside, context))
    results = [
        tuned_scores(call.suite, call.options, model, context)
        if call.suite in FINE_TUNED
        else [_run_suite(model, call, loaded(), held, taught)]
        for call in calls
    ]
    return _labelled(results, calls)


def check_rows(calls: Sequence[SuiteCall]) -> None:
    """Look for the rows of benchmarks, before a model is loaded.

    Raises:
        UsageError: A task that lm-eval does not know.
        MissingResourceError, DataError: Rows that are not there.
    """
    from stlm_kd.eval.harness import evaluate  # takes seconds, which other suites need not

    for call in calls:
        if call.suite == LM_EVAL:
            known = ("tasks", "source", "num_fewshot")
            evaluate.check(**{name: call.options[name] for name in known if name in call.options})


def kept_scores(
    recipe: Recipe, model: str, context: RunContext, *, beside: TeacherSet | None = None
) -> list[SuiteResult]:
    """The recipe's suites on a model, each as a stage; the model is loaded if a score is not there yet.

    Args:
        recipe: Its suites, and the data that they read.
        model: Folder or Hub id.
        context: Where scores are kept.
        beside: A student's teachers; None of a teacher, which suites that compare with teachers leave out.
    """
    calls = [call for call in suite_calls(recipe) if beside is not None or call.suite not in NEEDS_TEACHERS]
    trust = context.trust_remote_code
    held = cache(partial(held_out_of_recipe, recipe))
    labels = cache(lambda: None if recipe.language_task is not None else class_names_of(recipe))
    loaded = cache(lambda: _load(model, labels(), trust))
    taught = cache(lambda suite: _taught(suite, model, loaded(), held(), beside, context))
    results: list[list[SuiteResult]] = []
    for call in calls:
        if call.suite in FINE_TUNED:
            results.append(tuned_scores(call.suite, call.options, model, context))
            continue

        def build(folder: Path, call: SuiteCall = call) -> None:
            _write(_run_suite(model, call, loaded(), held(), taught), folder)

        key = score_key(call, recipe, model, trust=trust)
        if call.suite in NEEDS_TEACHERS:
            assert beside is not None
            key["beside"] = (
                teachers_key(beside, trust=trust)
                if call.suite == AGREEMENT
                else aligned_teachers_key(beside, model, trust=trust)
            )
        results.append([_read(context.stages.make("eval", key, build))])
    return _labelled(results, calls)


def fine_tune(recipe: Recipe, model: str, context: RunContext) -> None:
    """What ``kept_scores`` would fine-tune: by all processes of the command, which call this together."""
    for call in suite_calls(recipe):
        if call.suite in FINE_TUNED:
            tuned_scores(call.suite, call.options, model, context)


def write_reports(results: Sequence[SuiteResult], folder: Path) -> None:
    """Write each report of lm-eval, in its own layout, as a file of a folder, unless it is there already."""
    for result in results:
        if result.suite == LM_EVAL:
            path = folder / f"{file_name(f'{LM_EVAL} {result.label}')}.json"
            if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != result.report:
                write_json(path, result.report)


def _load(
    model: str, labels: Sequence[str] | None, trust: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A language model, or where there are labels (none of a regression) a model of them."""
    tokenizer = load_tokenizer(model, trust_remote_code=trust)
    if labels is None:
        loaded = load_language_model(model, None, trust_remote_code=trust)
    else:
        loaded = load_classifier(model, labels, tokenizer=tokenizer, trust_remote_code=trust)
    to_device(loaded, current_device())
    return loaded, tokenizer


def _taught(
    suite: str,
    name: str,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    held: HeldOut,
    beside: TeacherSet | None,
    context: RunContext,
) -> Mapping[str, AlignedTeacher] | Mapping[str, AnswersOf]:
    """The teachers as a suite asks them."""
    assert beside is not None, "suites that need teachers are asked for where there are some"
    if suite == AGREEMENT:
        assert isinstance(held, Examples)
        return answering(beside.teachers, held, context)
    return beside.taught(name, *loaded, trust=context.trust_remote_code)


def _run_suite(
    model: str,
    call: SuiteCall,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
    held: HeldOut,
    taught: Callable[[str], Mapping[str, AlignedTeacher] | Mapping[str, AnswersOf]],
) -> SuiteResult:
    """What a suite says, which takes long enough for some that it is said before."""
    print(f"scoring {model}  {call.suite}", file=sys.stderr, flush=True)
    teachers = (taught(call.suite),) if call.suite in NEEDS_TEACHERS else ()
    result = SUITES[call.suite](*loaded, held, *teachers, **call.resolved)
    assert isinstance(result, SuiteResult)
    return result


def _labelled(results: Sequence[Sequence[SuiteResult]], calls: Sequence[SuiteCall]) -> list[SuiteResult]:
    return [
        replace(result, label=label)
        for found, label in zip(results, labels(calls), strict=True)
        for result in found
    ]


def _write(result: SuiteResult, folder: Path) -> None:
    write_json(folder / "result.json", result.to_json())
    write_reports([result], folder)


def _read(folder: Path) -> SuiteResult:
    return SuiteResult.from_json(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def score_models(
    recipe: Recipe,
    models: Sequence[str],
    teachers: Mapping[str, Mapping[str, str] | None],
    context: RunContext,
    jobs: int,
) -> dict[str, tuple[SuiteResult, ...]]:
    """The scores of several models, ``jobs`` side by side.

    Args:
        recipe: Its suites.
        models: Folders or Hub ids.
        teachers: By model, the teachers that a student is compared with; None of a teacher.
        context: Where scores are kept.
        jobs: Evaluations side by side.
    """
    found = run_jobs(
        [
            Job(_score_model, (plain(recipe), model, context.named("eval", jobs), teachers[model]))
            for model in models
        ],
        workers=jobs if recipe.eval else 1,
    )
    return {model: tuple(results) for model, results in zip(models, found, strict=True)}


def _score_model(
    values: dict[str, Any], model: str, context: RunContext, teachers: Mapping[str, str] | None
) -> list[SuiteResult]:
    """The scores of a student beside its teachers, or (None) of one of these."""
    recipe = from_values(values, origin="recipe")
    beside = None if teachers is None else TeacherSet(teachers, recipe)
    return kept_scores(recipe, model, context, beside=beside)
