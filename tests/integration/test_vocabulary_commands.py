"""``vocabulary show`` and ``vocabulary compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.load import save_model
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.tokenizer_kinds import TEXTS, byte_level, llama, word_piece


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tokenizers, one of them trimmed, and a text."""
    made = tmp_path_factory.mktemp("vocabularies")
    kinds = {"whole": byte_level(), "small": trim_tokenizer(byte_level(), TEXTS, 265), "words": word_piece()}
    for name, tokenizer in kinds.items():
        tokenizer.save_pretrained(made / name)
    (made / "a.txt").write_text("\n".join(TEXTS))
    return made


def _json(*arguments: str) -> dict[str, object]:
    found = CliRunner().invoke(app, ["vocabulary", *arguments, "--json"])
    assert found.exit_code == 0, found.output
    values: dict[str, object] = json.loads(found.stdout)
    return values


def test_shares_are_those_of_a_slow_count(folder: Path) -> None:
    """The share of tokens of the text whose string both byte-level vocabularies have."""
    names = [str(folder / name) for name in ("whole", "small", "words")]
    found = _json("compare", *names, "--text", str(folder / "a.txt"))
    pairs = {(Path(p["student"]).name, Path(p["teacher"]).name): p for p in found["pairs"]}  # type: ignore[attr-defined]
    assert len(pairs) == 6
    assert (pairs["small", "whole"]["rows"], pairs["small", "whole"]["share"]) == (265, 1.0)
    whole, small = byte_level(), trim_tokenizer(byte_level(), TEXTS, 265)
    tokens = whole.tokenize("\n".join(TEXTS))  # a file is one document
    share = sum(token in small.get_vocab() for token in tokens) / len(tokens)
    assert pairs["whole", "small"]["share"] == pytest.approx(share)
    assert pairs["whole", "small"]["rows"] == 265


def test_a_tokenizer_is_shown(folder: Path) -> None:
    found = _json("show", str(folder / "words"))
    assert (found["model"], found["alphabet"], found["bytes_per_token"]) == ("WordPiece", "WordPiece", None)
    assert found["special"] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    printed = CliRunner().invoke(app, ["vocabulary", "show", str(folder / "words")])
    assert "WordPiece" in printed.output and "[MASK]" in printed.output


RECIPE = """task: clm
student: {tokenizer: {trim: a, size: 280}, preset: stlm-nano}
teachers:
  - {name: a, model: model, adapt: {tokens: 3k}}
  - {name: b, recipe: teacher.yaml, adapt: {tokens: 3k}}
data: {train: {path: a.txt}, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}, {loss: forward_kl}]
train: {steps: 2}
"""
TEACHER = """task: clm
student:
  tokenizer: {train: bpe, size: 270}
  architecture: {model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2}
data: {train: {path: a.txt}, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}]
train: {steps: 2}
"""


def test_a_recipes_vocabularies_are_shown_and_part_of_its_plan(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written; teacher b's tokenizer is that of the library on the same text."""
    monkeypatch.chdir(folder)
    save_model(llama(300), byte_level(), folder / "model")
    (folder / "student.yaml").write_text(RECIPE)
    (folder / "teacher.yaml").write_text(TEACHER)
    before = sorted(folder.rglob("*"))
    found = _json("show", "student.yaml")
    pairs = {pair["teacher"]: pair for pair in found["compared"]["pairs"]}  # type: ignore[index]
    assert (pairs["teacher a"]["rows"], pairs["teacher a"]["share"]) == (280, 1.0)
    student = trim_tokenizer(byte_level(), TEXTS, 280)
    trained = set(train_tokenizer(["\n".join(TEXTS)], size=270).get_vocab())
    tokens = student.tokenize("\n".join(TEXTS))
    share = sum(token in trained for token in tokens) / len(tokens)
    assert pairs["teacher b"]["share"] == pytest.approx(share)
    assert share < 1
    tied_rows = 280 * 64
    assert found["embedding"] == tied_rows < found["parameters"]  # type: ignore[operator]
    plan = CliRunner().invoke(app, ["distill", "-r", "student.yaml", "--dry-run"])
    assert plan.exit_code == 0 and f"student: {tied_rows:,} of " in plan.output
    assert f"{share:.1%}" in plan.output
    assert sorted(folder.rglob("*")) == before
