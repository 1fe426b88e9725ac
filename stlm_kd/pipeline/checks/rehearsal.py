"""Rehearsal: before training, save, load and score untrained models as the run would at its end.

The student is rehearsed with its initial weights. A teacher is replaced by a stand-in of its family with two
blocks, as bodies are large: with its own vocabulary it is scored, with the student's also saved and loaded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from stlm_kd.activity import doing
from stlm_kd.artifacts.atomic import clear_unfinished_for, is_full_disk, remove, unfinished_name
from stlm_kd.data.labelled.examples import Examples
from stlm_kd.errors import ModelError, RecipeError, StlmKdError, printable
from stlm_kd.eval import SUITES
from stlm_kd.eval.attribution.explain import classifier_outputs
from stlm_kd.eval.fine_tuning.base import tasks_of
from stlm_kd.eval.interchange.suite import AlignedTeacher
from stlm_kd.eval.runner import random_states_kept
from stlm_kd.models.checkpoints.reloading import check_reloaded
from stlm_kd.models.layer_alignment import aligned
from stlm_kd.models.load import save_model, to_device
from stlm_kd.pipeline.builders.data import held_out_of_recipe
from stlm_kd.pipeline.builders.numbers import num_layers
from stlm_kd.pipeline.builders.overlap import HeldOut
from stlm_kd.pipeline.checks.stand_ins import adapted_stand_in, stand_in, untrained_student
from stlm_kd.pipeline.context import RecipeSetup
from stlm_kd.pipeline.stages.score import SuiteCall, suite_calls
from stlm_kd.training.processes import current_device

_BYTES = 4_000  # maximum bytes of held-out text to read

_CHARACTERS = 300  # maximum characters of each of the two scored documents

_SAMPLE = ("The girl walks to the river.", "Her brother reads a long book.")
"""The scored documents of a recipe without held-out text."""

_REMEDY = "; fix it before training, or skip the rehearsal with --no-rehearsal"

_FEWER: Mapping[str, int] = {"limit": 2, "tokens": 32, "rows": 2, "examples": 2, "samples": 16, "steps": 2}
"""Reduced values of suite options."""


Built = tuple[PreTrainedModel, PreTrainedTokenizerFast]
"""An untrained model in evaluation mode on the CPU, and its tokenizer."""


@dataclass(frozen=True, slots=True)
class Part:
    """A model that the run will score, and save if ``is_saved``; suites compare a student with teachers.

    ``build`` returns None for a too large model or an unknown family.
    """

    place: str
    build: Callable[[], Built | None]
    is_saved: bool
    is_student: bool = False


def rehearse(setup: RecipeSetup, *, folder: Path, origin: str, only: Sequence[str] | None = None) -> None:
    """Check that the run's models can be saved, loaded and scored after training.

    Removes all that it writes, and restores the states of the random generators. ``only`` names teachers to
    rehearse without the student; None for the student and all teachers.

    Raises:
        StlmKdError: A model cannot be saved, differs after loading with plain transformers, or makes a suite
            fail; the subclass depends on the fault.
    """
    began = time.monotonic()
    target = folder / "rehearsal"
    clear_unfinished_for(target)
    unfinished = unfinished_name(target)
    names: list[str] = []
    try:
        with random_states_kept():
            for part in _parts(setup, only):
                what = f"rehearsal: {part.place}"
                with doing(what), _failure_named(f"{origin}: {what}", _REMEDY):
                    if (built := part.build()) is not None:
                        _rehearse(part, *built, setup, unfinished)
                        names.append(part.place)
                remove(unfinished)
    finally:
        remove(unfinished)
    if names:
        took = f"{time.monotonic() - began:.1f} s"
        print(printable(f"rehearsal: {', '.join(names)}: passed in {took}"), file=sys.stderr, flush=True)


@contextmanager
def _failure_named(what: str, remedy: str = "", kind: type[StlmKdError] = StlmKdError) -> Iterator[None]:
    """Add what was tried and a remedy to errors; turn errors of other libraries into ``kind``."""
    try:
        yield
    except RecipeError:
        raise
    except StlmKdError as error:
        raise type(error)(f"{what}: {error}{remedy}") from error
    except Exception as error:
        if is_full_disk(error):
            raise
        lines = " ".join(str(error).split())[:500]
        raise kind(f"{what}: {type(error).__name__}: {lines}{remedy}") from error


def _parts(setup: RecipeSetup, only: Sequence[str] | None) -> Iterator[Part]:
    """The models to rehearse, built one at a time to save memory."""
    if only is None:
        build = lambda: (untrained_student(setup), setup.tokenizer)  # noqa: E731
        yield Part("student", build, is_saved=True, is_student=True)
    for number, teacher in enumerate(setup.recipe.teachers):
        if teacher.is_only_read or (only is not None and teacher.name not in only):
            continue
        place = f"teachers[{number}] ({teacher.name})"
        if setup.recipe.eval:
            yield Part(place, partial(stand_in, teacher, setup), is_saved=False)
        if teacher.adapt is not None:
            adapted = partial(adapted_stand_in, teacher, setup)
            yield Part(f"{place}, adapted", adapted, is_saved=True)


def _rehearse(
    part: Part, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, setup: RecipeSetup, folder: Path
) -> None:
    recipe, context = setup.recipe, setup.context
    saved = folder / "model"
    if part.is_saved:
        with _failure_named("cannot be saved, as the run will do at its end", kind=ModelError):
            folder.mkdir(parents=True)
            save_model(model, tokenizer, saved)
        with _failure_named("was saved and loaded by plain transformers", kind=ModelError):
            check_reloaded(model, tokenizer, saved, trust_remote_code=context.trust_remote_code)
    held = (_few(held_out_of_recipe(recipe, most_bytes=_BYTES)) if recipe.eval else []) or list(_SAMPLE)
    to_device(model, current_device())
    for number, call in enumerate(suite_calls(recipe)):
        with _failure_named(f"eval[{number}] ({call.suite})"):
            if not SUITES[call.suite].fine_tunes:
                if part.is_student or not SUITES[call.suite].teachers:
                    others = (_itself(call, model, tokenizer, held),) if SUITES[call.suite].teachers else ()
                    SUITES[call.suite](model, tokenizer, held, *others, **_reduced_options(call))
            elif part.is_saved:
                _with_head(call, saved, tokenizer, trust=context.trust_remote_code)


def _few(held: HeldOut) -> HeldOut:
    """Examples of different labels, or the beginnings of two documents."""
    if not isinstance(held, Examples):
        texts = [text[:_CHARACTERS] for text in held[:2]]
        return texts if len(texts) != 1 else [texts[0][: len(texts[0]) // 2], texts[0][len(texts[0]) // 2 :]]
    different = np.unique(held.labels, return_index=True)[1]
    least = 4 if held.is_regression else 2  # correlations have no standard error with fewer examples
    return held.select(np.sort(different[: max(least, len(held.label_names))]).astype(np.int64))


def _reduced_options(call: SuiteCall) -> dict[str, object]:
    """A suite's options, reduced to minimal work."""
    options = dict(call.options)
    for name, most in _FEWER.items():
        given = options.get(name)
        if name in options:
            options[name] = min(given, most) if isinstance(given, int) else most
    if "on" in options:
        options["on"] = "held-out"
    for name in ("ids", "classes", "sources"):  # a few examples may lack these
        if name in options:
            options[name] = ()
    return options


def _itself(
    call: SuiteCall, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, held: HeldOut
) -> Mapping[str, object]:
    """The student in place of its teachers, which may not exist yet."""
    if SUITES[call.suite].teachers == "aligned":
        layers = num_layers(model.config)
        return {"itself": AlignedTeacher(model, aligned("full", layers, layers))}
    assert isinstance(held, Examples)
    return {"itself": partial(classifier_outputs, "itself", model, tokenizer, held)}


def _with_head(call: SuiteCall, saved: Path, tokenizer: PreTrainedTokenizerFast, *, trust: bool) -> None:
    """Build the model that a suite will fine-tune, for its first task."""
    (task,) = tasks_of(SUITES[call.suite](**call.options)[:1])
    model = task.model(str(saved), tokenizer, trust=trust)
    task.check_model(model, context=task.job.context or 8, name=str(saved))
