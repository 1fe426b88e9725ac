"""What decides a result, and what does not: objectives of weight 0, names, classes, lengths of examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import normalizers

from stlm_kd.data.tokenizers import load_tokenizer, same_vocabulary, train_tokenizer
from stlm_kd.pipeline.builders.examples import all_examples
from stlm_kd.pipeline.builders.objective import projections_of, terms_of
from stlm_kd.pipeline.context import RecipeSetup, RunContext
from stlm_kd.pipeline.stage_keys import held_out_key, student_key
from stlm_kd.pipeline.stages.score import suite_calls
from stlm_kd.pipeline.stages.student_job import StudentJob, Variant
from stlm_kd.recipe import Recipe, load
from stlm_kd.recipe.describe import describe
from tests.support.pico import pico_model

BASE = """
task: clm
student: {tokenizer: own/tokenizer, preset: stlm-nano}
teachers: [{name: a, model: some/model}, {name: b, model: other/model}]
data: {train: a.txt}
objectives: [{loss: labels}, {loss: forward_kl, teacher: b}]
train: {steps: 10}
"""
HINT = "{loss: hint, teacher: a, sites: first, projection: linear}"


def recipe(folder: Path, *overrides: str) -> Recipe:
    (folder / "base.yaml").write_text(BASE, encoding="utf-8")
    return load(str(folder / "base.yaml"), overrides)


def with_objectives(folder: Path, *entries: str) -> Recipe:
    return recipe(folder, f"objectives=[{', '.join(('{loss: labels}', *entries))}]")


def job(folder: Path, found: Recipe, variant: Variant = "student") -> StudentJob:
    """The student's job in a folder with one teacher, ``a``."""
    if not (folder / "a").exists():
        pico_model("gpt2").save_pretrained(folder / "a")
    tokenizer = train_tokenizer(["A good film and a bad film."] * 9, "bpe", 270, masked=False)
    setup = RecipeSetup(found, tokenizer, RunContext(folder))
    return StudentJob.of(setup, variant, 1, {"a": str(folder / "a")})


def test_an_objective_of_weight_0_asks_no_teacher_and_has_no_term_and_no_projection(tmp_path: Path) -> None:
    idle = "{loss: hint, teacher: a, weight: 0, projection: linear}"
    found = with_objectives(tmp_path, idle, "{loss: forward_kl, teacher: b}")
    used = job(tmp_path, found).used_teachers
    configs = {name: pico_model("gpt2").config for name in used}
    terms = terms_of(found, pico_model("llama").config, configs)
    assert used == {"b"}
    assert [term.name for term in terms] == ["labels", "forward_kl@b"]
    assert not list(projections_of(found, terms, pico_model("llama").config, configs, seed=1).parameters())


def test_the_key_holds_the_names_from_which_projections_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Some text.\n", encoding="utf-8")
    config = pico_model("llama").config
    keys, weights = [], []
    for entries in ((HINT,), (HINT.replace("linear", "linear, weight: 0"), HINT)):
        found = with_objectives(tmp_path, *entries)
        keys.append(student_key(job(tmp_path, found)))
        made = projections_of(found, terms_of(found, config, {"a": config}), config, {"a": config}, seed=1)
        weights.append(next(iter(made.parameters())))
    assert not weights[0].equal(weights[1])
    assert keys[0] != keys[1]


def test_the_key_holds_the_wordnet_that_a_followed_objective_draws_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Some text.\n", encoding="utf-8")

    def keys(entry: str) -> list[object]:
        found = with_objectives(tmp_path, entry, "{loss: forward_kl, teacher: a}")
        made = []
        for version in ("one", "another"):
            monkeypatch.setattr(
                "stlm_kd.interventions.sources.wordnet_identity", lambda version=version: version
            )
            made.append(student_key(job(tmp_path, found)))
        return made

    for source, differ in (("synonym", True), ("in-context-random", False)):
        first, second = keys(f"{{loss: diito, teacher: a, source: {source}}}")
        assert (first != second) is differ
    first, second = keys("{loss: diito, teacher: a, source: synonym, weight: 0}")
    assert first == second


def labelled(folder: Path, train: tuple[str, ...], held: tuple[str, ...], *overrides: str) -> Recipe:
    for name, labels in (("train", train), ("held", held)):
        rows = [json.dumps({"sentence": f"text {i}", "label": label}) for i, label in enumerate(labels)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / "classes.yaml").write_text(
        f"""
task: classification
student: {{tokenizer: t, architecture: {{model_type: bert}}}}
data: {{train: {folder}/train.jsonl, validation: {folder}/held.jsonl, context: 24}}
objectives: [{{loss: labels}}]
train: {{steps: 1}}
eval: [classification, {{suite: classification, context: 8}}]
""",
        encoding="utf-8",
    )
    return load(str(folder / "classes.yaml"), overrides)


def test_the_key_of_held_out_examples_holds_the_classes_that_the_training_examples_have(
    tmp_path: Path,
) -> None:
    found = [held_out_key(labelled(tmp_path, train, ("b", "b"))) for train in (("a", "b"), ("b", "c"))]
    assert found[0] != found[1]


def test_examples_are_read_again_once_their_file_has_changed(tmp_path: Path) -> None:
    first = all_examples(labelled(tmp_path, ("a", "b"), ("a",)))
    assert all_examples(labelled(tmp_path, ("a", "b"), ("a",))) is first
    assert all_examples(labelled(tmp_path, ("b", "c", "c"), ("b",))).label_names == ("b", "c")


def test_a_classifier_is_scored_at_the_length_that_it_is_trained_at_unless_told(tmp_path: Path) -> None:
    found = suite_calls(labelled(tmp_path, ("a", "b"), ("a",)))
    assert [call.options["context"] for call in found] == [24, 8]


@pytest.mark.parametrize("lowercase", [False, True])
def test_a_teacher_whose_tokenizer_reads_otherwise_reads_for_itself(lowercase: bool, tmp_path: Path) -> None:
    made = train_tokenizer(["A good film and a bad film."] * 9, "bpe", 270, masked=True)
    made.save_pretrained(tmp_path / "own")
    if lowercase:
        made.backend_tokenizer.normalizer = normalizers.Lowercase()
    made.save_pretrained(tmp_path / "theirs")
    own, theirs = (load_tokenizer(str(tmp_path / name)) for name in ("own", "theirs"))
    assert same_vocabulary(own, theirs)
    objectives = "objectives=[{loss: labels}, {loss: forward_kl, teacher: t}]"
    found = labelled(
        tmp_path, ("a", "b"), ("a",), f"teachers=[{{name: t, model: {tmp_path}/theirs}}]", objectives
    )
    setup = RecipeSetup(found, own, RunContext(tmp_path))
    reading = StudentJob.of(setup, "student", 1, {"t": str(tmp_path / "theirs")})
    assert set(reading.teacher_tokenizers) == ({"t"} if lowercase else set())


@pytest.mark.parametrize(
    ("entry", "pairs"),
    [
        ("{loss: diito, teacher: a}", True),
        ("{loss: diito, teacher: a, source: input-tokens}", True),
        ("{loss: diito, teacher: a, pairing: independent}", False),
        ("{loss: diito, teacher: a, source: mixup}", False),
        ("{loss: diito, teacher: a, weight: 0}", False),
    ],
)
def test_rows_are_dealt_out_in_pairs_where_they_are_sources_of_each_other(
    entry: str, pairs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Some text.\n", encoding="utf-8")
    found = with_objectives(tmp_path, entry, "{loss: forward_kl, teacher: a}")
    student, control = job(tmp_path, found), job(tmp_path, found, "no-teacher")
    assert (student.pairs_rows, control.pairs_rows) == (pairs, False)
    assert ("sources" in student_key(student)) is pairs and "sources" not in student_key(control)


@pytest.mark.parametrize(
    ("entry", "sizes", "told"),
    [
        ("{loss: diito, teacher: a}", (16, 1), "recompute the sources of 16 of the 16 rows of a step"),
        ("{loss: diito, teacher: a}", (16, 2), None),
        ("{loss: diito, teacher: a}", (15, 3), None),
        ("{loss: diito, teacher: a, source: input-tokens}", (16, 1), None),
        ("{loss: diito, teacher: a, source: mixup}", (16, 1), None),
    ],
)
def test_the_plan_says_how_many_sources_are_run_again(
    entry: str, sizes: tuple[int, int], told: str | None, tmp_path: Path
) -> None:
    objectives = f"objectives=[{{loss: labels}}, {entry}]"
    given = [f"train.effective_batch={sizes[0]}", f"train.micro_batch={sizes[1]}"]
    lines = describe(recipe(tmp_path, objectives, *given)).splitlines()
    found = [line for line in lines if line.startswith("recompute the sources")]
    assert [line.split(",")[0] for line in found] == ([] if told is None else [told])
