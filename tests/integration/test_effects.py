"""No option does nothing: a change of any field changes the plan, and what reaches the engine or a user.

What reaches the engine is caught at its door, ``fit``: models, batches, terms and settings. Two trainings
that differ there must have different keys, or one would be taken for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stlm_kd.artifacts.results import SuiteResult, Variant
from stlm_kd.artifacts.stage_store import Key
from stlm_kd.data.labelled.batches import ExampleStream
from stlm_kd.data.sources import hub
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.distillation.step import DistillationStep
from stlm_kd.distillation.terms import Term
from stlm_kd.eval import SUITES
from stlm_kd.eval.language_modeling.likelihood import ScoredText
from stlm_kd.eval.language_modeling.perplexity import text_result
from stlm_kd.models.families import Task
from stlm_kd.models.load import load_language_model
from stlm_kd.models.presets import PRESETS
from stlm_kd.pipeline.builders import models as models_of
from stlm_kd.pipeline.builders.text import tokens_by_domain
from stlm_kd.pipeline.context import RecipeSetup, RunContext, context_for
from stlm_kd.pipeline.stage_keys import adaptation_key, student_key
from stlm_kd.pipeline.stages import adaptation, adaptation_quality, score, student
from stlm_kd.pipeline.stages.student_job import StudentJob
from stlm_kd.pipeline.stages.students import variants
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.describe import describe
from stlm_kd.sharing.hub import RepoInfo
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.training.config import DeepSpeedOptions
from tests.support.effects_world import build, build_cache, home
from tests.support.field_effects import EFFECTS, ELSEWHERE, WITHOUT_TEACHERS

Values = dict[str, Any]
CHANGES = {name: one for name, one in {**EFFECTS, **WITHOUT_TEACHERS}.items() if name not in ELSEWHERE}
SIDE = {"log_every", "checkpoint_every", "keep_checkpoints", "zero", "deepspeed"}
"""Settings that leave the trained weights as they are."""
SHARES = range(20)
"""Twentieths of a training at which its terms are looked at."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that the base recipes name, and what their changes name."""
    folder = tmp_path_factory.mktemp("world")
    build(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_cache()
    return folder


@pytest.fixture(autouse=True)
def _at_home(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the world's folder, with a Hub whose texts tell how they were asked for, and unmeasured teachers."""
    monkeypatch.chdir(world)

    unmeasured = text_result([ScoredText(1.0, 1, 1)], 0, 1, 1)

    def rows(dataset: str, *asked: Any) -> Iterator[tuple[str, dict[str, str]]]:
        column, *others = asked[-1]
        values = dict.fromkeys(others, "en")
        yield from (
            (f"row {number}", {column: f"{dataset} {asked} {number}", **values}) for number in range(20)
        )

    monkeypatch.setattr(hub, "_rows_of_hub", rows)
    monkeypatch.setattr(hub, "_at_commit", lambda name, rev: RepoInfo("dataset", name, rev, f"{name} {rev}"))
    monkeypatch.setattr(adaptation_quality, "perplexity", lambda *asked, **named: unmeasured)


class Caught(Exception):
    """Raised at the door of the engine, with what came there."""


def working_for(recipe: Recipe, world: Path) -> RunContext:
    """As the commands make it."""
    return context_for(recipe, world / "runs", resume=True, trust_remote_code=False, run_name="")


def reached(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, context: RunContext) -> Values:
    """All that a recipe brings about: trainings, adaptations, evaluations, and those of its teachers."""
    for module in (student, adaptation):
        monkeypatch.setattr(module, "fit", caught)
    monkeypatch.setattr(models_of, "load_language_model", loaded)
    # As on an accelerator: elsewhere every teacher is replicated.
    monkeypatch.setattr(models_of, "placement_here", lambda teacher, processes: teacher.placement)
    setup = setup_of(recipe, context)
    models = {teacher.name: teacher.model or "some/model" for teacher in recipe.teachers}
    fits, adaptations = {}, {}
    for variant, seed in ((variant, seed) for variant in variants(recipe) for seed in recipe.seeds):
        job = StudentJob.of(setup, variant, seed, models)
        with pytest.raises(Caught) as door:
            student.train_student(job, context.output_dir / "student", label="")
        fits[variant, seed] = {**door.value.args[0], "key": student_key(job)}
    for teacher in recipe.teachers:
        if teacher.adapt is not None:
            with pytest.raises(Caught) as door:
                adaptation.adapt_model(
                    setup,
                    teacher.adapt,
                    models[teacher.name],
                    name=teacher.name,
                    folder=context.output_dir / "teacher",
                )
            given = (recipe, teacher.adapt, models[teacher.name], setup.tokenizer)
            key = adaptation_key(*given, trust=False)
            adaptations[teacher.name] = {**door.value.args[0], "key": key}
    nested = [teacher.recipe for teacher in recipe.teachers if teacher.recipe is not None]
    return {
        "fits": fits,
        "adaptations": adaptations,
        "suites": suites(monkeypatch, recipe),
        "domains": tokens_by_domain(setup) if recipe.language_task else None,
        "nested": [reached(monkeypatch, inner, context) for inner in nested],
    }


@cache
def read_once(name: str, task: Task, trust: bool, dtype: torch.dtype, head_seed: int | None) -> Any:
    return load_language_model(name, task, trust_remote_code=trust, dtype=dtype, head_seed=head_seed)


def loaded(name: str, task: Task, *, trust_remote_code: bool, dtype: torch.dtype, head_seed: Any) -> Any:
    """A copy of a model of the world, whose files are the same in all tests."""
    return deepcopy(read_once(name, task, trust_remote_code, dtype, head_seed))


def caught(step: Any, batches: Any, settings: Any, **named: Any) -> None:
    """Stands in for ``fit``."""
    held = named["validation"]() if named["validation"] is not None else ()
    raise Caught(
        {
            "student": (step.student.config.to_dict(), weights(step.student)),
            "saves_memory": any(
                getattr(part, "gradient_checkpointing", False) for part in step.student.modules()
            ),
            "terms": terms(step),
            "combination": step.combination,
            "projections": weights(step.projections),
            "vocabulary_loss": step.vocabulary_loss,
            "teachers": {name: known_of(teacher) for name, teacher in step.teachers.items()},
            "resting": {
                name: getattr(getattr(teacher, "_teacher", teacher), "placement", None)
                for name, teacher in step.teachers.items()
            },
            "batches": (batches.effective_batch, batches.micro_batch, batches.seed, read(batches)),
            "held_out": [digest(batch.input_ids.numpy()) for batch in held],
            "settings": asdict(settings),
            "trackers": [type(tracker).__name__ for tracker in named["tracker"].trackers],
        }
    )


def known_of(teacher: Any) -> Any:
    """A teacher's weights and whether it is translated, or what its cache keeps of it."""
    if isinstance(teacher, CachedTeacher):
        manifest = teacher.cache.manifest
        return [asdict(manifest.layout), manifest.variants, manifest.fingerprint]
    return hasattr(teacher, "translation"), weights(getattr(teacher, "_teacher", teacher).model)


def terms(step: DistillationStep) -> list[list[Term]]:
    """What the step computes at some moments of the training."""
    step.train()
    found = []
    for share in SHARES:
        step.begin(share, len(SHARES))
        found.append(step.terms)
    return found


def read(batches: Any) -> list[Any]:
    """What is read, and how much of it is masked."""
    if isinstance(batches, ExampleStream):
        examples = batches.examples
        return [digest(examples.labels), digest(examples.own.tokens), digest(examples.own.offsets)]
    parts = [(part.weight, part.context, digest(part.store.tokens)) for part in batches.corpus.parts]
    return [parts, None if batches.masking is None else batches.masking.share]


def digest(array: Any) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def weights(model: nn.Module) -> list[tuple[str, bool, str]]:
    named = model.named_parameters()
    return [(name, value.requires_grad, digest(value.detach().float().numpy())) for name, value in named]


def suites(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> list[tuple[str, Any]]:
    """The suites that are called, with their arguments."""
    calls: list[tuple[str, Any]] = []

    def spy(name: str) -> Any:
        def suite(*given: Any, **options: Any) -> SuiteResult:
            calls.append((name, options))
            return SuiteResult(name, ())

        return replace(SUITES[name], function=suite)

    def tuned(name: str, options: Values, *asked: Any) -> list[SuiteResult]:
        calls.append((name, SUITES[name](**options)))
        return []

    monkeypatch.setattr(score, "SUITES", {name: spy(name) for name in SUITES})
    monkeypatch.setattr(score, "tuned_scores", tuned)
    monkeypatch.setattr(score, "versions_of_data", lambda *_: {})  # which nobody can fetch here
    monkeypatch.setattr(score, "_teachers_for", lambda *_: {})
    score.score("some/model", score.suite_calls(recipe), [], context=home())
    return calls


@pytest.fixture(scope="module")
def known() -> dict[str, Values]:
    """What the base recipes bring about, once it was looked at."""
    return {}


def base_of(base: str, known: dict[str, Values], world: Path, monkeypatch: pytest.MonkeyPatch) -> Values:
    """What a base recipe brings about, looked at once."""
    if base not in known:
        recipe = load(f"{base}.yaml")
        known[base] = reached(monkeypatch, recipe, working_for(recipe, world))
    return known[base]


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_a_change_of_any_field_changes_what_is_done(
    field: str, world: Path, known: dict[str, Values], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    change = CHANGES[field]
    recipe = load(f"{change.base}.yaml", change.overrides)
    before = base_of(change.base, known, world, monkeypatch)
    after = reached(monkeypatch, recipe, working_for(recipe, world))
    assert without_keys(before) != without_keys(after)
    for kind in ("fits", "adaptations"):
        for name in before[kind].keys() & after[kind].keys():
            one, two = before[kind][name], after[kind][name]
            assert one["key"] != two["key"] or decisive(one) == decisive(two)


def without_keys(found: Values) -> Values:
    trainings = {
        kind: {name: {**one, "key": None} for name, one in found[kind].items()}
        for kind in ("fits", "adaptations")
    }
    return {**found, **trainings, "nested": [without_keys(inner) for inner in found["nested"]]}


def decisive(one: Values) -> Values:
    """What decides the trained weights."""
    settings = {name: value for name, value in one["settings"].items() if name not in SIDE}
    return {
        **one,
        "settings": settings,
        "trackers": None,
        "vocabulary_loss": None,
        "resting": None,
        "key": None,
    }


@pytest.mark.parametrize("field", sorted(EFFECTS))
def test_a_change_of_any_field_changes_the_plan(field: str, world: Path) -> None:
    change = EFFECTS[field]
    plans = [describe(load(f"{change.base}.yaml", given)) for given in ((), change.overrides)]
    told = [[line for line in plan.splitlines() if "recipe" not in line] for plan in plans]
    assert told[0] != told[1]


def test_settings_reach_the_engine_as_they_are_written(world: Path) -> None:
    recipe = load("two-teachers.yaml", EFFECTS["Train.steps"].overrides)
    written = recipe.train.model_dump()
    given = asdict(recipe.train.config)
    assert written.keys() - given.keys() == {"gradient_checkpointing"}
    assert {name: given[name] for name in written.keys() & given.keys()} == {
        name: value for name, value in written.items() if name in given
    }
    assert recipe.train.config.with_steps(101).checkpoint_every == 11
    adapt = recipe.teachers[0].adapt
    assert adapt is not None
    setup = RecipeSetup(recipe, load_tokenizer("some/tokenizer"), home())
    training_data = StudentJob.of(setup, "student", 1, {}).training_data(1.0)
    written, given = (
        adapt.model_dump(),
        asdict(adaptation.adaptation_settings(adapt, training_data)),
    )
    shared = written.keys() & given.keys()
    assert len(shared) == 9
    assert {name: given[name] for name in shared} == {name: written[name] for name in shared}
    assert given["steps"] * adapt.effective_batch * 64 >= adapt.tokens


@pytest.mark.parametrize(
    "field", [name for name in EFFECTS if name.startswith(("Recipe.engine", "Engine.", "DeepSpeed."))]
)
def test_the_engine_reaches_the_training_and_leaves_its_key(
    field: str, world: Path, known: dict[str, Values], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load("masked.yaml", EFFECTS[field].overrides)
    found = (
        base_of("masked", known, world, monkeypatch),
        reached(monkeypatch, recipe, working_for(recipe, world)),
    )
    fits = [one["fits"]["student", 1] for one in found]
    engine = [{name: one["settings"][name] for name in ("zero", "deepspeed")} for one in fits]
    told = [(*one.values(), fit["vocabulary_loss"]) for one, fit in zip(engine, fits, strict=True)]
    assert told[0] == (2, asdict(DeepSpeedOptions()), "chunked") != told[1]
    assert fits[0]["key"] == fits[1]["key"]


def key_of(variant: Variant, *overrides: str, base: str = "two-teachers") -> Key:
    recipe = load(f"{base}.yaml", overrides)
    teachers = {teacher.name: "some/model" for teacher in recipe.teachers}
    setup = RecipeSetup(recipe, load_tokenizer("some/tokenizer"), home())
    return student_key(StudentJob.of(setup, variant, 1, teachers))


NANO = "{" + ", ".join(f"{name}: {value}" for name, value in PRESETS["stlm-nano"].items()) + "}"


@pytest.mark.parametrize("variant", ["no-teacher", "all-data"])
@pytest.mark.parametrize(
    "changes",
    [
        ("teachers[1].model=third/model",),
        ("teachers[0].name=c", "combine.weights={c: 0.5, b: 0.5}", "student.init_from.teacher=c"),
        ("combine={how: mean}",),
        ("objectives=[{loss: labels}]",),
        ("objectives[1].temperature=2",),
    ],
)
def test_a_controls_key_does_not_depend_on_teachers_and_objectives(
    variant: Variant, changes: tuple[str, ...], world: Path
) -> None:
    assert key_of(variant, *changes) == key_of(variant)


@pytest.mark.parametrize(
    "changes",
    [
        (
            "objectives=[{loss: labels}, {loss: forward_kl, teacher: a}, {loss: reverse_kl, teacher: b}]",
            "combine={how: mean}",
        ),
        ("teachers=[{name: a, model: some/model}]", "combine={how: mean}"),
    ],
)
def test_a_way_to_combine_that_is_not_used_is_not_in_the_key(changes: tuple[str, ...], world: Path) -> None:
    assert key_of("student")["combine"] is not None
    assert key_of("student", *changes)["combine"] is None


def test_a_preset_is_in_the_key_by_its_fields(world: Path) -> None:
    written = ("student.preset=null", f"student.architecture={NANO}")
    assert key_of("student", *written, base="trained") == key_of("student", base="trained")


def test_a_student_of_labels_alone_is_the_control_without_teachers(world: Path) -> None:
    assert key_of("student", base="trained") == key_of("no-teacher", base="trained")


def test_a_tokens_role_is_in_the_keys(world: Path) -> None:
    """Padding decides a row that is not trained, and every role which rows are mapped to which."""
    recipe = load("two-teachers.yaml")
    adapt = recipe.teachers[0].adapt
    assert adapt is not None
    own, other = load_tokenizer("some/tokenizer"), load_tokenizer("some/tokenizer")
    other.pad_token = None
    models = {"a": "some/model", "b": "some/model"}
    context = home()
    setups = [RecipeSetup(recipe, tokenizer, context) for tokenizer in (own, other)]
    trained = [student_key(StudentJob.of(setup, "student", 1, models)) for setup in setups]
    adapted = [adaptation_key(recipe, adapt, "some/model", t, trust=False) for t in (own, other)]
    assert trained[0] != trained[1]
    assert adapted[0] != adapted[1]
