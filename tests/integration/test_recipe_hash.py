"""The hash, the resolved text, and that no field of the schema is left out of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stlm_kd.data.sources.sources import DATA_SOURCES
from stlm_kd.distillation.terms import INTERCHANGE_LOSSES
from stlm_kd.eval import SUITES
from stlm_kd.interventions import SOURCES
from stlm_kd.losses import LOSSES, MAP_LOSSES, STATE_LOSSES
from stlm_kd.recipe import Recipe, from_values, load, plain, recipe_hash, resolved_yaml, term_names
from stlm_kd.recipe.schema import cache, data, interchange, objective, root, student, training
from stlm_kd.recipe.schema.fields import Part
from stlm_kd.recipe.schema.options import with_options
from stlm_kd.recipe.yaml import dump, parse
from stlm_kd.teachers.combination import COMBINERS
from tests.support.field_effects import BASES, EFFECTS, ONE_VALUE_SO_FAR, Change

PARTS = {
    name: part
    for module in (root, student, data, objective, interchange, training, cache)
    for name, part in vars(module).items()
    if isinstance(part, type) and issubclass(part, Part) and part is not Part
}
TABLES = (
    (root.Combine, COMBINERS),
    (objective.Response, LOSSES),
    (objective.Feature, STATE_LOSSES),
    (objective.MapFeature, MAP_LOSSES),
    (interchange.Interchange, INTERCHANGE_LOSSES),
    (interchange.SourceEntry, SOURCES),
    (root.Suite, SUITES),
)


def every_field() -> Iterator[str]:
    for part in PARTS.values():
        yield from (
            f"{part.__name__}.{field}" for field in part.__annotations__ if field in part.model_fields
        )
    for name in DATA_SOURCES:
        yield from (f"Source[{name}].{key}" for key in (name, *DATA_SOURCES[name].all_options()))
    for base, table in TABLES:
        for name in table:
            extended = with_options(base, name, table)
            yield from (
                f"{extended.__name__}.{f}" for f in extended.model_fields if f not in base.model_fields
            )


def loaded(change: Change, folder: Path, *, changed: bool) -> Recipe:
    file = folder / "base.yaml"
    file.write_text(BASES[change.base], encoding="utf-8")
    return load(str(file), change.overrides if changed else ())


def test_every_field_of_the_schema_has_an_entry_and_every_entry_a_field() -> None:
    assert set(every_field()) == set(EFFECTS) | ONE_VALUE_SO_FAR


def test_fields_said_to_have_one_value_have_one() -> None:
    for name in ONE_VALUE_SO_FAR:
        part, field = name.split(".")
        assert len(get_args(PARTS[part].model_fields[field].annotation)) == 1


@pytest.mark.parametrize("field", sorted(EFFECTS))
def test_a_change_of_any_field_but_the_engines_changes_the_hash(field: str, tmp_path: Path) -> None:
    change = EFFECTS[field]
    before, after = (loaded(change, tmp_path, changed=changed) for changed in (False, True))
    is_engine = field == "Recipe.engine" or field.startswith(("Engine.", "DeepSpeed."))
    assert (recipe_hash(before) == recipe_hash(after)) == is_engine


@pytest.mark.parametrize("field", sorted(EFFECTS))
def test_the_resolved_text_reads_back_as_the_same_recipe(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = loaded(EFFECTS[field], tmp_path, changed=True)
    (tmp_path / "resolved.yaml").write_text(resolved_yaml(recipe), encoding="utf-8")
    again = load(str(tmp_path / "resolved.yaml"))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)
    assert from_values(plain(recipe), origin="values") == recipe


def test_comments_order_and_defaults_written_out_do_not_change_the_hash(tmp_path: Path) -> None:
    short, long = tmp_path / "short.yaml", tmp_path / "long.yaml"
    short.write_text(
        "task: clm\nstudent: {tokenizer: t, preset: stlm-nano}\ndata: {train: a.txt}\n"
        "objectives: [{loss: labels}]\ntrain: {steps: 8k}\n"
    )
    long.write_text(
        "# a comment\ntrain: {steps: 8000, clip: 1, betas: [0.9, 0.95]}\n"
        "objectives: [{weight: 1, loss: labels}]\n"
        "data: {context: 512, train: [{path: a.txt, weight: 1}]}\n"
        "student: {preset: stlm-nano, tokenizer: t}\n"
        "task: clm\nseeds: [1]\n"
    )
    assert recipe_hash(load(str(short))) == recipe_hash(load(str(long)))


def test_a_teacher_by_recipe_enters_the_hash_by_content_and_not_by_name(tmp_path: Path) -> None:
    trained = BASES["trained"]
    (tmp_path / "one.yaml").write_text(trained)
    (tmp_path / "two.yaml").write_text("# the same\n" + trained)
    (tmp_path / "three.yaml").write_text(trained.replace("size: 512", "size: 513"))
    hashes = []
    for name in ("one", "two", "three"):
        file = tmp_path / "main.yaml"
        file.write_text(
            BASES["teacher-by-recipe"].split("teachers:")[0]
            + f"""
teachers: [{{name: a, recipe: {name}.yaml}}]
data: {{train: a.txt}}
objectives: [{{loss: forward_kl}}]
train: {{steps: 10}}
"""
        )
        hashes.append(recipe_hash(load(str(file))))
    assert hashes[0] == hashes[1] != hashes[2]


def test_terms_of_the_same_loss_have_different_names(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(BASES["two-teachers"])
    alone, of_a = "{loss: forward_kl}", "{loss: forward_kl, teacher: a}"
    recipe = load(str(file), [f"objectives=[{{loss: labels}}, {alone}, {of_a}, {of_a}, {alone}]"])
    assert term_names(recipe) == ("labels", "forward_kl", "forward_kl@a", "forward_kl@a_2", "forward_kl_2")


@pytest.mark.parametrize("order", [["a", "a", "a_2"], ["a_2", "a", "a"], ["a", "a_2", "a"]])
def test_terms_of_teachers_whose_names_end_in_numbers_have_different_names(
    tmp_path: Path, order: list[str]
) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(BASES["two-teachers"].replace("name: b", "name: a_2").replace("b: 0.5", "a_2: 0.5"))
    entries = ", ".join(f"{{loss: forward_kl, teacher: {name}}}" for name in order)
    names = term_names(load(str(file), [f"objectives=[{entries}]", "combine={how: mean}"]))
    assert len(set(names)) == 3
    assert all(found.startswith(f"forward_kl@{name}") for found, name in zip(names, order, strict=True))


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
    | st.sampled_from(
        ["on", "no", "3e-4", "1_000", "null", "~", "0x1", "1:30", "", " a", "- b", "200M", ".5"]
    )
)


@settings(deadline=None, max_examples=100)
@given(
    st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc", min_size=1), inner))
)
def test_whatever_is_written_is_read_back_as_the_same_values(value: object) -> None:
    text = dump({"key": value})
    assert parse(text).plain() == {"key": value}
