"""Where the relative paths of recipes start."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import RecipeError
from stlm_kd.notes import note
from stlm_kd.recipe import Recipe, from_values, load, paths_of, plain, recipe_hash, values_of
from stlm_kd.recipe.locate import Source, document
from stlm_kd.recipe.paths import Start, locate_paths
from stlm_kd.recipe.schema.fields import RecipePath
from stlm_kd.recipe.yaml import Node, Plain, parse

TEXT = """task: clm
student: {preset: stlm-nano, tokenizer: m/tok}
teachers: [{name: a, model: ./m/t, cache: c}, {name: b, recipe: sub/teacher.yaml}]
data: {train: [d/a.txt, {path: d/b.txt, weight: 2}], validation: d/v.txt}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 8}
"""
TEACHER = """task: clm
student: {preset: stlm-nano, tokenizer: ../m/tok}
data: {train: t.txt}
objectives: [{loss: labels}]
train: {steps: 8}
"""
FILES = ("m/tok/tokenizer.json", "m/t/config.json", "c/x", "d/a.txt", "d/b.txt", "d/v.txt", "sub/t.txt")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recipe with all that it names; the current folder is an empty one beside it."""
    folder = tmp_path / "there"
    for file in FILES:
        _write(folder / file)
    (folder / "sub" / "teacher.yaml").write_text(TEACHER)
    (folder / "one.yaml").write_text(TEXT)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    note.cache_clear()
    return folder


def _write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("words\n")


def _paths(recipe: Recipe) -> list[str]:
    """All paths of the recipe of ``TEXT``, in the order of ``FILES``."""
    first, second = recipe.teachers
    assert first.cache is not None and second.recipe is not None
    data = [source.value for source in (*recipe.data.train, *(recipe.data.validation or ()))]
    own = [recipe.student.tokenizer, first.model, first.cache.path, *data]
    return [str(path) for path in (*own, second.recipe.data.train[0].value)]


def test_every_kind_of_path_starts_in_the_folder_of_its_file(there: Path) -> None:
    recipe = load("../there/one.yaml")
    named = ["m/tok", "m/t", "c", *FILES[3:]]
    assert [Path(path).resolve() for path in _paths(recipe)] == [there / name for name in named]
    inner = recipe.teachers[1].recipe
    assert inner is not None
    assert Path(str(inner.student.tokenizer)).resolve() == there / "m" / "tok"


def test_hash_and_text_do_not_depend_on_the_folders(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = load(str(there / "one.yaml"))
    monkeypatch.chdir(there)
    beside = load("one.yaml")
    assert plain(away) == plain(beside)
    assert recipe_hash(away) == recipe_hash(beside)
    assert "there" not in json.dumps(plain(away))


def test_in_the_current_folder_texts_stay_as_they_are(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(there)
    assert _paths(load("one.yaml")) == ["m/tok", "./m/t", "c", *FILES[3:6], str(there / FILES[6])]


def test_values_and_pickles_keep_the_paths(there: Path) -> None:
    recipe = load(str(there / "one.yaml"))
    again = from_values(pickle.loads(pickle.dumps(values_of(recipe))), origin="values")
    assert again == recipe
    assert plain(again) == plain(recipe)


def test_values_of_the_command_line_start_in_the_current_folder(there: Path) -> None:
    recipe = load(str(there / "one.yaml"), ["data.train=d/a.txt", "student.tokenizer=m/tok"])
    assert (recipe.data.train[0].value, recipe.student.tokenizer) == ("d/a.txt", "m/tok")
    assert [source.value for source in recipe.data.validation or ()] == [str(there / "d/v.txt")]


def test_what_is_only_in_the_current_folder_is_read_there_and_a_line_says_so(
    there: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (there / "d/a.txt").unlink()
    _write(Path("d/a.txt"))
    _write(Path("d/b.txt"))
    with caplog.at_level(logging.WARNING):
        recipe = load(str(there / "one.yaml"))
    assert [source.value for source in recipe.data.train] == ["d/a.txt", str(there / "d/b.txt")]
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2 and all(f"data.train[{i}].path: " in lines[i] for i in (0, 1)), lines
    assert str(Path("d/a.txt").absolute()) in lines[0] and str(there / "d/a.txt") in lines[0]
    assert "earlier releases" in lines[1]


def test_what_is_in_neither_is_looked_for_beside_the_recipe_but_a_model_on_the_hub(there: Path) -> None:
    for name in ("d/v.txt", "m/tok/tokenizer.json"):
        (there / name).unlink()
    (there / "m/tok").rmdir()
    recipe = load(str(there / "one.yaml"))
    assert [source.value for source in recipe.data.validation or ()] == [str(there / "d/v.txt")]
    assert recipe.student.tokenizer == "m/tok"


def test_a_run_finds_later_what_it_found_at_first(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stlm_kd.pipeline.recording import create

    _write(Path("mine.txt"))
    recipe = load(str(there / "one.yaml"), ["data.validation=mine.txt"])
    run = create(recipe, name="one", output_dir=Path.cwd() / "runs", command="").path
    expected = [str(Path(path).resolve()) for path in _paths(recipe)]
    monkeypatch.chdir(there.parent)
    _write(Path("mine.txt"))
    _write(Path("d/a.txt"))
    again = load(str(run / "recipe.yaml"), is_stored=True)
    assert [str(Path(path).resolve()) for path in _paths(again)] == expected
    assert recipe_hash(again) == recipe_hash(recipe)


NAMES = st.text("abc", min_size=1, max_size=2)
NESTED = st.lists(NAMES, min_size=1, max_size=5).map("/".join)


@given(text=NESTED, is_model=st.booleans())
def test_a_fetched_recipe_names_its_own_folder_or_the_hub_and_nothing_here(text: str, is_model: bool) -> None:
    given: dict[str, Plain] = {"student": {"model": text}} if is_model else {"data": {"train": [text]}}
    root = parse(json.dumps(given))
    folder = Path("/fetched/folder")
    faults = locate_paths(root, lambda node: Start(folder, is_fetched=True))
    (found,) = [node.value for node in _leaves(root)]
    if is_model and text.count("/") < 2:
        assert found == text and type(found) is str
        assert bool(faults) == Path(text).exists()
    else:
        assert isinstance(found, RecipePath)
        assert (Path(found), found.written, faults) == (folder / text, text, [])


def _leaves(node: Node) -> list[Node]:
    if isinstance(node.value, (dict, list)):
        inner = node.value.values() if isinstance(node.value, dict) else node.value
        return [leaf for entry in inner for leaf in _leaves(entry)]
    return [node]


def test_a_model_of_a_fetched_recipe_is_never_a_folder_here(there: Path) -> None:
    _write(Path("m/tok/tokenizer.json"))
    origin = "hf://alice/one@v1"
    text = TEXT.replace(", {name: b, recipe: sub/teacher.yaml}", "").replace(", cache: c", "")
    source = Source(there / "one.yaml", origin, there)
    found = document(parse(text, origin=origin), [], origin=origin, chain=(source,))
    (fault,) = found.faults
    assert fault.place == "student.tokenizer" and "'m/tok' found" in fault.message
    assert isinstance(found.root.value, dict)
    allowed = document(
        parse(text, origin=origin), ["student.tokenizer=./m/tok"], origin=origin, chain=(source,)
    )
    assert allowed.faults == ()


def test_built_in_recipes_read_the_current_folder(there: Path) -> None:
    recipe = load("adapt-qwen2-0.5b", ["student.tokenizer=tok"])
    assert not paths_of(recipe)
    _write(Path("tok/tokenizer.json"))
    assert paths_of(recipe) == {"student.tokenizer=tok": str(Path("tok").absolute())}


def test_a_misplaced_value_is_a_fault_of_the_schema_alone(there: Path) -> None:
    (there / "bad.yaml").write_text("task: clm\ndata: 3\nteachers: {a: 1}\nstudent: [x]\n")
    with pytest.raises(RecipeError):
        load(str(there / "bad.yaml"))


def test_a_list_of_changes_names_files_beside_the_file_that_holds_it(there: Path) -> None:
    from stlm_kd.pipeline.sweep import sweep_recipes

    held = "sweep: {text: [{data.train: d/b.txt}, {'data.train[0]': d/../sub/t.txt}]}\n"
    (there / "sub" / "base.yaml").write_text(TEACHER + held.replace("d/", "../d/"))
    (there / "two.yaml").write_text(
        "extends: sub/base.yaml\neval: [perplexity]\ndata: {validation: d/v.txt}\n"
    )
    (there / "three.yaml").write_text(TEXT + held + "eval: [perplexity]\n")
    for name, axis in (("two", ["text"]), ("three", ["text", "train.steps=[8, 9]"])):
        recipes = sweep_recipes(str(there / f"{name}.yaml"), [], axis).values()
        found = [Path(recipe.data.train[0].value).resolve() for recipe in recipes]
        assert found == [there / file for file in ("d/b.txt", "sub/t.txt") for _ in axis]
        assert all("there" not in json.dumps(plain(recipe)) for recipe in recipes)
