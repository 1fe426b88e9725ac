"""What the task of a recipe decides: kinds of models, what is masked, and which suites there are."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from stlm_kd.models.families import ARCHITECTURES
from stlm_kd.models.presets import PRESETS
from stlm_kd.recipe import Recipe, load, recipe_hash
from stlm_kd.recipe.describe import describe
from tests.support.recipes import faults

FAMILY = {"clm": "llama", "mlm": "bert", "classification": "bert", "regression": "bert"}
"""Each task, and a family of models for it."""

TASK_OF_SUITE = {
    "agreement": "classification",
    "classification": "classification",
    "lm-eval": "clm",
    "masked-loss": "mlm",
    "perplexity": "clm",
    "pseudo-perplexity": "mlm",
    "regression": "regression",
}
FINE_TUNED = ["glue", "ner", "squad"]

RECIPES = {
    task: f"""
task: {task}
student: {{tokenizer: t, architecture: {{model_type: {family}}}}}
teachers: [{{name: a, model: m}}]
data: {{train: a.txt, validation: b.txt}}
objectives: [{{loss: labels}}, {{loss: logit_mse, centred: false}}]
train: {{steps: 10}}
"""
    for task, family in FAMILY.items()
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The recipes as files."""
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    return {name: str(tmp_path / f"{name}.yaml") for name in RECIPES}


def other(task: str) -> str:
    return {"clm": "mlm", "mlm": "clm"}[task]


def test_a_masked_recipe_masks_15_percent_and_says_so_when_written_out(files: dict[str, str]) -> None:
    recipe, written = load(files["mlm"]), load(files["mlm"], ("data.masked_share=0.15",))
    assert recipe.data.masked_share == 0.15
    assert recipe_hash(recipe) == recipe_hash(written)
    assert "mask 15% of the tokens" in describe(recipe)
    assert load(files["clm"]).data.masked_share is None


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "some"])
def test_a_share_that_is_none_is_refused(files: dict[str, str], share: str) -> None:
    (found,) = faults(files["mlm"], f"data.masked_share={share}")
    assert found.startswith("data.masked_share: ")


@pytest.mark.parametrize("task", ["clm", "classification", "regression"])
def test_only_masked_models_mask(files: dict[str, str], task: str) -> None:
    assert faults(files[task], "data.masked_share=0.15") == [
        "data.masked_share: only for masked language models (task: mlm)"
    ]


@pytest.mark.parametrize("task", FAMILY)
@pytest.mark.parametrize("suite", TASK_OF_SUITE)
def test_a_suite_is_for_its_task_alone(files: dict[str, str], suite: str, task: str) -> None:
    entry = f"eval=[{{suite: {suite}{', tasks: [blimp]' if suite == 'lm-eval' else ''}}}]"
    if TASK_OF_SUITE[suite] == task:
        assert load(files[task], (entry,)).eval[0].suite == suite
        return
    (found,) = faults(files[task], entry)
    assert found.startswith(f"eval[0]: {suite} is for task {TASK_OF_SUITE[suite]}; expected for {task}: ")
    named = found.rpartition(": ")[2].split(", ")
    several = {"regression": set(), "classification": {"interchange"}}.get(task, {"interchange", *FINE_TUNED})
    assert named == sorted({name for name, own in TASK_OF_SUITE.items() if own == task} | several)


@pytest.mark.parametrize("task", FAMILY)
@pytest.mark.parametrize("suite", FINE_TUNED)
def test_a_suite_that_fine_tunes_is_for_language_models(files: dict[str, str], suite: str, task: str) -> None:
    entry = f"eval=[{suite}]"
    if task in ("clm", "mlm"):
        assert load(files[task], (entry,)).eval[0].suite == suite
        return
    (found,) = faults(files[task], entry)
    told = {"classification": "agreement, classification, interchange", "regression": "regression"}[task]
    assert found == f"eval[0]: {suite} is for language models; expected for {task}: {told}"


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
def test_a_family_is_for_its_task_alone(files: dict[str, str], family: str) -> None:
    task = ARCHITECTURES[family].task
    change = f"student.architecture={{model_type: {family}}}"
    recipe: Recipe = load(files[task], (change,))
    assert recipe.student.architecture == {"model_type": family}
    assert faults(files[other(task)], change) == [
        f"student.architecture: {family} is for task {task}, but the task is {other(task)}"
    ]


@pytest.mark.parametrize("family", sorted(ARCHITECTURES))
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_any_family_may_be_a_classifier(files: dict[str, str], family: str, task: str) -> None:
    recipe = load(files[task], (f"student.architecture={{model_type: {family}}}",))
    assert recipe.student.architecture == {"model_type": family}
    assert recipe.language_task is None


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_preset_is_for_its_task_alone(files: dict[str, str], preset: str) -> None:
    task = ARCHITECTURES[str(PRESETS[preset]["model_type"])].task
    changes = ("student.architecture=null", f"student.preset={preset}")
    assert load(files[task], changes).student.preset == preset
    (found,) = faults(files[other(task)], *changes)
    assert found.startswith("student.preset: ") and f"is for task {task}" in found


@pytest.mark.parametrize(("task", "other"), [*permutations(FAMILY, 2)])
def test_a_teacher_of_another_task_could_teach_features_only(
    files: dict[str, str], task: str, other: str
) -> None:
    inner = f"{{task: {task}, student: {{tokenizer: t, model: m}}, data: {{train: a.txt}}, "
    inner += "objectives: [{loss: labels}], train: {steps: 2}}"
    teachers = f"teachers=[{{name: a, recipe: {inner}}}]"
    assert load(files[task], (teachers,)).teachers[0].recipe is not None
    (found,) = faults(files[other], teachers)
    assert found.startswith(f"teachers[0].recipe.task: {task} given, but the student's task is {other}")
    assert "predictions cannot be compared" in found


def test_a_new_head_is_for_a_model_that_is_named(files: dict[str, str]) -> None:
    assert faults(files["mlm"], "student.new_head=true") == [
        "student.new_head: only for a student.model that has no head"
    ]


def test_dropout_is_for_a_student_that_comes_with_one(files: dict[str, str]) -> None:
    (found,) = faults(files["clm"], "student.dropout=0.3")
    assert found.startswith("student.dropout: only for student.model and student.init_from;")


def test_rows_of_a_masked_model_hold_a_token_between_their_ends(files: dict[str, str]) -> None:
    assert load(files["mlm"], ("data.context=3",)).data.context == 3
    (found,) = faults(files["mlm"], "data.context=2")
    assert found.startswith("data.context: 2 found; expected at least 3")


@pytest.mark.parametrize("zero", ["4", "true", "one", "-1"])
def test_a_stage_of_zero_that_there_is_not_is_refused(files: dict[str, str], zero: str) -> None:
    (found,) = faults(files["clm"], f"engine={{deepspeed: {{zero: {zero}}}}}")
    assert found.startswith("engine.deepspeed.zero: ")
