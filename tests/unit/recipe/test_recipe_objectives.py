"""Objectives of a recipe: schedules, sites, losses on states and maps, and lists of objectives by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.losses import MAP_LOSSES, STATE_LOSSES
from stlm_kd.models.layer_alignment import ALIGNMENTS
from stlm_kd.pipeline.builders.objective import weight_of
from stlm_kd.recipe import load, recipe_hash, resolved_yaml
from stlm_kd.recipe.describe import describe
from stlm_kd.recipe.locate import built_in_objectives
from stlm_kd.recipe.schema.objective import Feature, MapFeature, Response
from stlm_kd.recipe.yaml import parse
from stlm_kd.schedules import Ramp, Steps
from tests.support.recipes import faults

LLAMA = "{model_type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2}"
INNER = f"""
task: clm
student: {{tokenizer: t, architecture: {LLAMA.replace("layers: 2", "layers: 4")}}}
data: {{train: a.txt}}
objectives: [{{loss: labels}}]
train: {{steps: 2}}
"""
RECIPE = f"""
task: clm
student: {{tokenizer: t, architecture: {LLAMA}}}
teachers: [{{name: a, recipe: inner.yaml}}]
data: {{train: a.txt, validation: b.txt}}
objectives: [{{loss: labels}}, {{loss: hint}}, {{loss: attention_mse}}]
train: {{steps: 10}}
"""
WRITTEN = (
    f"{{task: clm, student: {{tokenizer: t, architecture: {LLAMA}}}, data: {{train: a.txt}}, "
    "objectives: logits, teachers: [{name: x, recipe: inner.yaml}], train: {steps: 2}}"
)
MODEL = "teachers=[{name: a, model: m}]"
"""A teacher of which the recipe itself says nothing."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A recipe with a teacher of four layers, for a student of two."""
    (tmp_path / "inner.yaml").write_text(INNER, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return str(tmp_path / "recipe.yaml")


def weight(file: str, schedule: str) -> float | Ramp | Steps:
    return weight_of(load(file, (f"objectives[0].weight={schedule}",)).objectives[0])


def test_a_ramp_is_over_the_whole_training_where_nothing_else_is_said(file: str) -> None:
    assert weight(file, "{schedule: linear, values: [1, 0]}") == Ramp("linear", 1.0, 0.0, 0.0, 1.0)
    given = "{schedule: cosine, values: [0.5, 2], between: [0.1, 0.3]}"
    assert weight(file, given) == Ramp("cosine", 0.5, 2.0, 0.1, 0.3)


def test_steps_begin_with_the_first_value(file: str) -> None:
    given = "{schedule: step-wise, values: [1, 0.5, 0], at: [0.25, 0.9]}"
    assert weight(file, given) == Steps(((0.0, 1.0), (0.25, 0.5), (0.9, 0.0)))


def test_every_number_of_a_loss_may_be_scheduled_and_nothing_else(file: str) -> None:
    falling = "{schedule: linear, values: [0.9, 0.1]}"
    for loss, option in (
        ("forward_kl", "temperature"),
        ("jensen_shannon", "beta"),
        ("skew_forward_kl", "alpha"),
    ):
        objective = load(file, (f"objectives[1]={{loss: {loss}, {option}: {falling}}}",)).objectives[1]
        assert objective.options[option].values == (0.9, 0.1)
    (found,) = faults(file, f"objectives[1]={{loss: forward_kl, temperature_scaling: {falling}}}")
    assert found.startswith("objectives[1].temperature_scaling: ")
    (found,) = faults(file, f"objectives[1]={{loss: logit_mse, centred: {falling}}}")
    assert found.startswith("objectives[1].centred: a mapping (schedule, values) found")


def test_a_schedule_is_told_in_words(file: str) -> None:
    text = describe(
        load(
            file,
            (
                "objectives[0].weight={schedule: cosine, values: [1, 0.5], between: [0, 0.5]}",
                "objectives[1].weight={schedule: step-wise, values: [0, 2], at: [0.1]}",
            ),
        )
    )
    assert "labels, weight cosine 1 to 0.5 from 0% to 50% of the steps" in text
    assert "hint, weight 0 to 2 at 10% of the steps" in text


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "{schedule: linear, values: [1, 0], between: [0.5, 0.2]}",
            "between 0.5 and",
        ),
        ("{schedule: linear, values: [1, 0], between: [0.5, 0.5]}", "expected begin < end"),
        (
            "{schedule: cosine, values: [1, 0], between: [0, 1.5]}",
            "between[1]: 1.5 found; expected at most 1",
        ),
        (
            "{schedule: cosine, values: [1, 0], between: [-0.1, 1]}",
            "between[0]: -0.1 found; expected at least 0",
        ),
        ("{schedule: linear, values: [1]}", "1 values found; expected two, from and to, for linear"),
        ("{schedule: linear, values: [1, 0.5, 0]}", "3 values found; expected two"),
        ("{schedule: linear, values: [1, 0], at: [0.5]}", "at is for step-wise schedules"),
        ("{schedule: step-wise, values: [1, 0]}", "2 values found; expected at with at least one entry"),
        ("{schedule: step-wise, values: [1, 0], at: []}", "expected at with at least one entry"),
        ("{schedule: step-wise, values: [1], at: [0.5]}", "1 values found; expected 2 for 1 entries of at"),
        ("{schedule: step-wise, values: [1, 0, 1], at: [0.5, 0.2]}", "in ascending order"),
        ("{schedule: step-wise, values: [1, 0, 1], at: [0.5, 0.5]}", "expected distinct fractions"),
        ("{schedule: step-wise, values: [1, 0], at: [0]}", "fractions above 0"),
        (
            "{schedule: step-wise, values: [1, 0], at: [0.5], between: [0, 1]}",
            "between is for linear and cosine",
        ),
        ("{schedule: linear, values: [1, -0.5]}", "-0.5 found; expected at least 0"),
        ("{schedule: linear, values: [1, .nan]}", "expected a finite number"),
        ("{schedule: linear, values: [1, half]}", "values[1]: 'half' found; expected a number"),
        ("{schedule: linear}", "values: not given, and there is no default"),
        ("{values: [1, 0]}", "schedule: not given, and there is no default"),
        (
            "{schedule: linaer, values: [1, 0]}",
            "expected one of linear, cosine, step-wise (did you mean linear?)",
        ),
        (
            "{schedule: linear, values: [1, 0], betwen: [0, 1]}",
            "not a key of a schedule (did you mean between?)",
        ),
        ("{}", "schedule: not given"),
        ("[1, 0]", "expected a number"),
    ],
)
def test_a_schedule_that_is_none_is_refused(file: str, schedule: str, message: str) -> None:
    found = faults(file, f"objectives[0].weight={schedule}")
    assert message in found[0]
    assert all(fault.startswith("objectives[0].weight") for fault in found)


def test_a_temperature_of_nothing_is_refused_in_a_schedule_too(file: str) -> None:
    scheduled = "{schedule: linear, values: [2, 0]}"
    (found,) = faults(file, f"objectives[1]={{loss: forward_kl, temperature: {scheduled}}}")
    assert found == "objectives[1].temperature: 0.0 found; expected more than 0"
    (found,) = faults(
        file, "objectives[1]={loss: jensen_shannon, beta: {schedule: linear, values: [0.5, 1.5]}}"
    )
    assert found.startswith("objectives[1].beta: 1.5 found; expected")


def test_weights_that_are_all_scheduled_at_nothing_weigh_nothing(file: str) -> None:
    nothing = "{schedule: linear, values: [0, 0]}"
    assert faults(file, f"objectives=[{{loss: labels, weight: {nothing}}}]") == [
        "objectives: every weight is 0; expected at least one above 0"
    ]
    rising = "{schedule: linear, values: [0, 0.1]}"
    assert load(file, (f"objectives=[{{loss: labels, weight: {rising}}}]",)).objectives


def test_a_loss_decides_what_its_objective_has(file: str) -> None:
    labels, hint, attention = load(file).objectives
    assert [type(entry).__mro__[1] for entry in (labels, hint, attention)] == [Response, Feature, MapFeature]
    assert isinstance(hint, Feature) and isinstance(attention, MapFeature)
    assert (hint.on, hint.sites, hint.projection) == ("attended", ("last",), "auto")
    assert (attention.on, attention.sites) == ("attended", ("last",))


@pytest.mark.parametrize("loss", [*STATE_LOSSES, *MAP_LOSSES])
def test_all_named_sites_and_layers_are_taken_alone_and_in_lists(file: str, loss: str) -> None:
    names = [*ALIGNMENTS, *(["embeddings"] if loss in STATE_LOSSES else [])]
    for name in names:
        entry = load(file, (MODEL, f"objectives[1]={{loss: {loss}, sites: {name}}}")).objectives[1]
        assert isinstance(entry, (Feature, MapFeature)) and entry.sites == (name,)
    given = f"[{names[0]}, {{0: 1, 1: [2, 3]}}, {names[-1]}]"
    entry = load(file, (f"objectives[1]={{loss: {loss}, sites: {given}}}",)).objectives[1]
    assert isinstance(entry, (Feature, MapFeature))
    assert entry.sites == (names[0], {"0": 1, "1": (2, 3)}, names[-1])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        (
            "top",
            "'top' found; expected one of embeddings, full, middle, late, first, last, or layers",
        ),
        ("embedding", "(did you mean embeddings?)"),
        ("[]", "an empty list found; expected at least one site"),
        ("{}", "an empty mapping found; expected layers"),
        ("3", "3 found; expected one of"),
        ("[first, 3]", "3 found; expected one of"),
        ("null", "null found"),
        ("{a: 1}", "a: 1 found; expected layers of student and teacher, such as {0: 1, 1: 3}"),
        ("{0: -1}", "0: -1 found"),
        ("{0: 1.5}", "0: 1.5 found"),
        ("{-1: 0}", "-1: 0 found"),
        ("{0: []}", "0: a list of 0 found"),
        ("{0: top}", "0: 'top' found"),
        ("{0: true}", "0: true found"),
    ],
)
def test_a_site_that_does_not_exist_is_refused(file: str, sites: str, message: str) -> None:
    (found,) = faults(file, f"objectives[1].sites={sites}")
    assert found.startswith("objectives[1].sites: ") and message in found


def test_embeddings_have_no_attention_maps(file: str) -> None:
    (found,) = faults(file, "objectives[2].sites=embeddings")
    assert found.startswith("objectives[2].sites: 'embeddings' found; expected one of full, ")


@pytest.mark.parametrize("objective", [1, 2])
@pytest.mark.parametrize(
    ("sites", "who"),
    [
        ("{2: 0}", "layer 2 given, but the student has 2; use layers 0 to 1"),
        ("{0: 4}", "layer 4 given, but teacher a has 4; use layers 0 to 3"),
        ("[last, {0: 1, 1: [2, 9]}]", "layer 9 given, but teacher a has 4; use layers 0 to 3"),
    ],
)
def test_a_layer_beyond_the_last_is_refused_without_a_model(
    file: str, objective: int, sites: str, who: str
) -> None:
    assert faults(file, f"objectives[{objective}].sites={sites}") == [f"objectives[{objective}].sites: {who}"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objectives[1].sites=late"], "objectives[1].sites: late means the two layers below the last"),
        (["objectives[2].sites={0: 3, 1: 1}"], "objectives[2].sites: student layer 0 has teacher layer 3"),
        (["objectives[1].sites={0: [2, 1]}"], "objectives[1].sites: teacher layers 2, 1 given"),
        (
            ["objectives[1].projection=none", "teachers[0].recipe.student.architecture.hidden_size=32"],
            "objectives[1].projection: none, but the student's hidden size is 16 and that of teacher a",
        ),
        (
            ["teachers[0].recipe.student.architecture.model_type=opt", "objectives=[{loss: attention_mse}]"],
            "objectives[0].loss: attention_mse does not support these models: teacher a is a opt; ",
        ),
    ],
)
def test_what_does_not_fit_by_the_recipe_itself_is_refused_without_a_model(
    file: str, overrides: list[str], message: str
) -> None:
    (found,) = faults(file, *overrides)
    assert found.startswith(message)


def test_what_takes_a_model_to_know_is_left_to_it(file: str) -> None:
    for change in (
        "objectives[1].sites=late",
        "objectives[1].projection=none",
        "objectives[1].sites={1: 99}",
    ):
        assert load(file, (MODEL, change)).objectives
    layers = "student.architecture={model_type: llama}"
    assert load(file, (layers, "objectives[1].sites={99: 0}")).objectives


def test_a_presets_layers_are_known(file: str) -> None:
    overrides = ("student.architecture=null", "student.preset=stlm-nano", "objectives[1].sites={99: 0}")
    (found,) = faults(file, *overrides)
    assert found.startswith("objectives[1].sites: layer 99 given, but the student has ")


def test_inner_states_are_of_one_teacher(file: str) -> None:
    teachers = "teachers=[{name: a, model: m}, {name: b, model: n}]"
    place = "not given, but hidden states and maps cannot be combined; name one of a, b"
    assert faults(file, teachers) == [f"objectives[{i}].teacher: {place}" for i in (1, 2)]
    assert faults(file, teachers, "objectives[1].teacher=a", "objectives[2].teacher=combined") == [
        f"objectives[2].teacher: {place}"
    ]
    (found,) = faults(file, "objectives[1].teacher=b")
    assert found == "objectives[1].teacher: b is not a teacher of this recipe; known: a, combined"
    assert load(file, (teachers, "objectives[1].teacher=a", "objectives[2].teacher=b")).objectives


def test_logits_of_several_teachers_are_known_up_to_a_constant(file: str) -> None:
    teachers = "teachers=[{name: a, model: m}, {name: b, model: n}]"
    mse = "objectives=[{loss: logit_mse, centred: false}]"
    (found,) = faults(file, teachers, mse)
    assert found.startswith("objectives[0].centred: false, but teachers are combined by probabilities")
    assert load(file, (teachers, mse, "objectives[0].teacher=b")).objectives
    assert load(file, (teachers, mse, "objectives[0].centred=true")).objectives


def test_a_loss_on_a_teacher_needs_one(file: str) -> None:
    found = faults(file, "teachers=[]")
    assert [fault.partition(":")[0] for fault in found] == ["objectives[1].loss", "objectives[2].loss"]
    assert "hint compares the student with a teacher, and the recipe has none" in found[0]


@pytest.mark.parametrize("name", [entry.name for entry in built_in_objectives()])
def test_a_list_of_objectives_may_be_named(file: str, name: str) -> None:
    (path,) = (entry.path for entry in built_in_objectives() if entry.name == name)
    written = parse(path.read_text(encoding="utf-8")).plain()
    named, out = (load(file, (f"objectives={given}",)) for given in (name, json.dumps(written)))
    assert isinstance(written, list) and len(named.objectives) == len(written)
    assert recipe_hash(named) == recipe_hash(out)
    assert "objectives:\n- " in resolved_yaml(named)


def test_studies_are_named() -> None:
    names = {entry.name for entry in built_in_objectives()}
    assert {"distilbert", "super-tiny", "attention-first", "attention-last", "logits", "patient"} <= names
    assert all(entry.purpose for entry in built_in_objectives())


def test_overrides_lead_into_a_named_list(file: str) -> None:
    overrides = ("objectives=distilbert", "objectives[1].temperature=4", "objectives.0.weight=3")
    objectives = load(file, overrides).objectives
    assert (objectives[0].weight, objectives[1].options["temperature"]) == (3.0, 4.0)
    Path(file).write_text(
        RECIPE.replace("[{loss: labels}, {loss: hint}, {loss: attention_mse}]", "distilbert"),
        encoding="utf-8",
    )
    objectives = load(file, ("objectives[1].temperature=4",)).objectives
    assert objectives[1].options["temperature"] == 4.0
    (found,) = faults(file, "objectives[1].temprature=4")
    assert found == "objectives[1].temprature: not an option of forward_kl (did you mean temperature?)"


def test_a_teachers_recipe_may_name_its_list_too(file: str) -> None:
    inner = Path(file).parent / "inner.yaml"
    teacher = "teachers: [{name: x, model: m}]\n"
    inner.write_text(INNER.replace("[{loss: labels}]", "logits") + teacher, encoding="utf-8")
    for overrides in ((), ("teachers[0].recipe.objectives[1].weight=0.5",)):
        found = load(file, overrides).teachers[0].recipe
        assert found is not None
        assert [entry.loss for entry in found.objectives] == ["labels", "forward_kl"]
        assert found.objectives[1].weight == (0.5 if overrides else 1.0)
    inner.write_text(INNER + teacher, encoding="utf-8")
    overrides = ("teachers[0].recipe.objectives=logits", "teachers[0].recipe.objectives[0].weight=2")
    for given in (overrides[:1], overrides):
        found = load(file, given).teachers[0].recipe
        assert found is not None
        assert [entry.loss for entry in found.objectives] == ["labels", "forward_kl"]
        assert found.objectives[0].weight == len(given)


def test_a_recipe_written_out_within_another_may_name_its_list_and_its_teachers_recipe(file: str) -> None:
    (Path(file).parent / "written.yaml").write_text(
        RECIPE.replace("recipe: inner.yaml", "recipe: " + WRITTEN), encoding="utf-8"
    )
    outer = load(str(Path(file).with_name("written.yaml"))).teachers[0].recipe
    assert outer is not None and outer.teachers[0].recipe is not None
    assert [entry.loss for entry in outer.objectives] == ["labels", "forward_kl"]


def test_a_list_that_is_not_known_is_told_with_the_nearest(file: str) -> None:
    (found,) = faults(file, "objectives=distillbert")
    assert found.startswith("objectives: 'distillbert' is not a known list of objectives")
    assert "(did you mean distilbert?); known: " in found


def test_a_fault_in_a_named_list_is_told(file: str) -> None:
    (found,) = faults(file, "teachers=[]", "objectives=logits")
    assert found.startswith("objectives[1].loss: forward_kl compares the student with a teacher")
