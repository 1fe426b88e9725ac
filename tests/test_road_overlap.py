"""Validation data that are trained on: said with their number, and refused where the files are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.data.overlap import text_hash
from tests.road import distilled, stlm_kd

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
    told = [one for one in remarks if "tokens <|endoftext|> stand inside its 1 documents" in one]
    assert len(told) == (0 if separated else 1)


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
