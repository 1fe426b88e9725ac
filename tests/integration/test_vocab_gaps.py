"""A vocabulary whose ids have gaps: embeddings have a row for the largest id, not one for each token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from stlm_kd.data.tokenizers import load_tokenizer
from tests.support.road import distilled, model_folder, stlm_kd, student

LARGEST = 399


@pytest.fixture(scope="module")
def gaps(road: Path) -> Path:
    """A folder of a tokenizer of 300 tokens whose last id is 399, and of two teachers with it."""
    folder = road / "gaps"
    load_tokenizer(str(road / "own")).save_pretrained(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = LARGEST
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_tokenizer(str(folder))
    assert len(tokenizer) == 300
    model_folder(folder / "whole", "llama", tokenizer, rows=LARGEST + 1)
    model_folder(folder / "short", "gpt2", tokenizer, rows=LARGEST)
    return folder


def changed(gaps: Path, teacher: str) -> tuple[str, ...]:
    return (
        f"student.tokenizer={gaps}",
        f"teachers=[{{name: a, model: {gaps / teacher}}}]",
        "train.steps=2",
        "train.validate_every=null",
    )


def test_student_and_teacher_have_every_id(gaps: Path, place: Path, tmp_path: Path) -> None:
    run = distilled("taught", *changed(gaps, "whole"), output_dir=tmp_path)
    model = AutoModelForCausalLM.from_pretrained(student(run) / "model")
    assert model.get_input_embeddings().num_embeddings == LARGEST + 1


def test_a_teacher_without_a_row_for_the_largest_id_is_refused(
    gaps: Path, place: Path, tmp_path: Path
) -> None:
    result = stlm_kd("distill", "-r", "taught.yaml", *changed(gaps, "short"), "--output-dir", str(tmp_path))
    assert result.exit_code == 3
    assert "its embedding has 399 rows, but its tokenizer ids up to 399" in result.stderr
