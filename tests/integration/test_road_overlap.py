"""Validation data that are also training data: counted in a note, refused if the files are identical."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.data.corpus import prepare, texts
from stlm_kd.data.overlap import text_hash
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.token_store import TokenStore
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import RecipeError
from stlm_kd.pipeline.checks.overlap import recipe_notes
from stlm_kd.pipeline.context import RunContext
from stlm_kd.pipeline.stages.tokenizer import setup_of
from stlm_kd.recipe import load
from tests.support.road import distilled, stlm_kd

STEPS = ("train.steps=2", "train.validate_every=2", "eval=[perplexity]")


def test_documents_in_both_are_counted_in_the_output_and_in_the_results(place: Path, tmp_path: Path) -> None:
    train, valid = ((place / f"{name}.txt").read_text().splitlines() for name in ("train", "valid"))
    (tmp_path / "mixed.txt").write_text("\n".join([*valid[:7], f"  {train[3]}  ", train[8]]))
    cut = ("data.train={path: train.txt, documents: line}",)
    mixed = f"data.validation={{path: {tmp_path / 'mixed.txt'}, documents: line}}"
    words = ("distill", "-r", "plain.yaml", *cut, mixed, *STEPS, "--output-dir", str(tmp_path / "runs"))
    found = stlm_kd(*words)
    assert found.exit_code == 0, found.output
    assert found.stderr.count("overlap: 2 of 9 validation documents (") == 1
    (results,) = tmp_path.rglob("results.json")
    (remark,) = [one for one in json.loads(results.read_text())["remarks"] if "overlap" in one]
    assert remark.startswith("overlap: 2 of 9 validation documents")
    assert remark in (results.parent / "table.txt").read_text()


def test_documents_in_both_are_left_out_of_the_training(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = [line for line in (place / "train.txt").read_text().splitlines() if line.strip()]
    (tmp_path / "mixed.txt").write_text("\n".join(["A line of its own .", f"  {train[3]}  ", train[8]]))
    (tmp_path / "rest.txt").write_text("\n".join(one for one in train if one not in (train[3], train[8])))
    held = f"data.validation={{path: {tmp_path / 'mixed.txt'}, documents: line}}"
    run = distilled("plain", LINES, held, "data.remove_overlap=true", *STEPS, output_dir=tmp_path / "runs")
    assert f"filters kept {len(train) - 2} of {len(train)} documents: remove_overlap took 2" in caplog.text
    assert "overlap:" not in (run / "results.json").read_text()
    rest = Source(path=str(tmp_path / "rest.txt"), documents="line")
    (expected,) = prepare([rest], load_tokenizer("own"), tmp_path / "stores")
    stores = [TokenStore.open(path.parent) for path in (tmp_path / "runs").rglob("hashes.bin")]
    (found,) = (store for store in stores if store.num_documents > 3)
    assert (found.tokens == expected.store.tokens).all() and len(found.tokens) == len(expected.store.tokens)


def test_documents_apart_raise_nothing(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", *STEPS, output_dir=tmp_path)
    assert "overlap" not in (run / "results.json").read_text()


def test_a_file_that_is_training_and_validation_data_is_refused_by_its_name(
    place: Path, tmp_path: Path
) -> None:
    for words in (
        ("distill", "-r", "plain.yaml", "data.validation=./train.txt", "--dry-run"),
        ("distill", "-r", "plain.yaml", "data.validation=./train.txt", "--output-dir", str(tmp_path)),
    ):
        found = stlm_kd(*words)
        assert found.exit_code == 3
        assert "./train.txt is data.train[0] too; expected data that are not trained on" in found.stderr
    assert not [*tmp_path.iterdir()]


def test_a_copy_of_the_training_file_is_refused_unless_it_is_allowed(place: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.txt").write_bytes((place / "train.txt").read_bytes())
    changes = (f"data.validation={tmp_path / 'copy.txt'}", *STEPS)
    found = stlm_kd("distill", "-r", "plain.yaml", *changes, "--output-dir", str(tmp_path / "runs"))
    assert found.exit_code == 1, found.output
    assert "copy.txt has the same content as the training file train.txt" in found.stderr
    assert not [*tmp_path.rglob("metrics.jsonl")]
    run = distilled("plain", *changes, "data.allow_overlap=true", output_dir=tmp_path / "runs")
    (remark,) = [one for one in json.loads((run / "results.json").read_text())["remarks"] if "overlap" in one]
    assert "1 of 1 validation documents (100.0% of their bytes)" in remark


@pytest.mark.parametrize("separated", [False, True])
def test_end_tokens_inside_documents_are_noted_until_documents_are_separated(
    separated: bool, place: Path, tmp_path: Path
) -> None:
    path = tmp_path / "joined.txt"
    path.write_text((place / "train.txt").read_text().replace("\n", "\n<|endoftext|>\n"))
    how = ', documents: {separator: "<|endoftext|>"}' if separated else ""
    words = ("distill", "-r", "plain.yaml", f"data.train={{path: {path}{how}}}", *STEPS)
    found = stlm_kd(*words, "--output-dir", str(tmp_path / "runs"))
    assert found.exit_code == 0, found.output
    (results,) = tmp_path.rglob("results.json")
    remarks = json.loads(results.read_text())["remarks"]
    told = [one for one in remarks if "tokens <|endoftext|> found within its 1 documents" in one]
    assert len(told) == (0 if separated else 1)


ADAPTED = "teachers=[{{name: g, model: gpt2, adapt: {{tokens: 600, fraction: {}}}}}]"
LINES = "data.train={path: train.txt, documents: line}"


def noted(place: Path, tmp_path: Path, *changes: str) -> tuple[str, ...]:
    """The notes on a recipe that reads a tenth of its text and is held out against 30 lines of it."""
    train = [line for line in (place / "train.txt").read_text().splitlines() if line.strip()]
    (tmp_path / "known.txt").write_text("\n".join(train[::4][:30]))
    held = f"data.validation={{path: {tmp_path / 'known.txt'}, documents: line}}"
    recipe = load("plain.yaml", [LINES, held, "data.fraction=0.1", *changes])
    return recipe_notes(setup_of(recipe, RunContext(tmp_path)))


@pytest.mark.parametrize(
    ("change", "share"),
    [
        ("controls=[]", 0.1),
        (ADAPTED.format("null"), 0.1),
        (ADAPTED.format(0.6), 0.6),
        (ADAPTED.format(1.0), 1.0),
        ("controls=[all-data]", 1.0),
    ],
)
def test_the_overlap_is_that_of_the_largest_share_that_a_row_reads(
    change: str, share: float, place: Path, tmp_path: Path
) -> None:
    taught = () if "teachers" in change else ("teachers=[{name: s, model: same}]",)
    (told,) = noted(place, tmp_path, change, *taught)
    read = {*texts([Source(path="train.txt", documents="line")], fraction=share)}
    count = sum(line in read for line in (tmp_path / "known.txt").read_text().splitlines())
    assert told.startswith(f"overlap: {count} of 30 validation documents")
    assert (count == 30) is (share == 1.0)


@pytest.mark.parametrize("files", [("train.txt", "valid.txt"), ("valid.txt", "train.txt")])
def test_what_a_teacher_was_trained_on_is_noted_by_its_name(
    files: tuple[str, str], place: Path, tmp_path: Path
) -> None:
    given = f"train: {{path: {files[0]}, documents: line}}, validation: {files[1]}"
    recipe = (place / "plain.yaml").read_text().replace("train: train.txt, validation: valid.txt", given)
    (tmp_path / "teacher.yaml").write_text(recipe)
    own, *of_teacher = noted(place, tmp_path, f"teachers=[{{name: t, recipe: {tmp_path / 'teacher.yaml'}}}]")
    assert "are training documents too" in own
    told = ["of teacher t" in line and line.startswith("overlap: 30 of 30 ") for line in of_teacher]
    assert told == ([True] if files[0] == "train.txt" else [])


def test_a_stored_run_is_read_whatever_it_was_validated_on(place: Path, tmp_path: Path) -> None:
    run = distilled("plain", *STEPS, output_dir=tmp_path)
    stored = run / "recipe.yaml"
    stored.write_text(stored.read_text().replace("path: valid.txt", "path: train.txt"))
    with pytest.raises(RecipeError, match="expected data that are not trained on"):
        load(str(stored))
    for words in (
        ("eval", str(run), "--suite", "perplexity"),
        ("eval", str(run), "--suite", "perplexity", "--data", "valid.txt"),
        ("report", str(run), "--html", str(tmp_path / "report.html")),
        ("runs", "show", str(run)),
    ):
        found = stlm_kd(*words)
        assert found.exit_code == 0, found.output
    assert "not one that this version understands" not in (tmp_path / "report.html").read_text()


def test_the_hash_of_a_pair_is_not_that_of_its_texts_together() -> None:
    assert text_hash("a b", "c") != text_hash("a", "b c") != text_hash("a b c")
    assert text_hash(" a\n\nb ") == text_hash("a b")


def test_scores_on_the_training_file_of_a_run_are_noted(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = distilled("plain", *STEPS, output_dir=tmp_path)
    (tmp_path / "copy.txt").write_bytes((place / "train.txt").read_bytes()[:40_000])
    for file, noted in (("train.txt", True), (str(tmp_path / "copy.txt"), False), ("valid.txt", False)):
        caplog.clear()
        found = stlm_kd("eval", str(run), "--suite", "perplexity", "--data", file)
        assert found.exit_code == 0, found.output
        assert ("train.txt, on which it was trained" in caplog.text) is noted
