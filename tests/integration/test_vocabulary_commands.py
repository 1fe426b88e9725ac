"""``vocabulary show`` and ``vocabulary compare``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.vocabulary.trim import trim_tokenizer
from tests.support.tokenizer_kinds import TEXTS, byte_level, word_piece


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
    tokens = [token for text in TEXTS for token in whole.tokenize(text)]
    share = sum(token in small.get_vocab() for token in tokens) / len(tokens)
    lines_end = len(TEXTS) - 1  # whose token, one byte, both have, where a file is one document
    shares = {share, (share * len(tokens) + lines_end) / (len(tokens) + lines_end)}
    assert any(pairs["whole", "small"]["share"] == pytest.approx(one) for one in shares)
    assert pairs["whole", "small"]["rows"] == 265


def test_a_tokenizer_is_shown(folder: Path) -> None:
    found = _json("show", str(folder / "words"))
    assert (found["model"], found["alphabet"], found["bytes_per_token"]) == ("WordPiece", "WordPiece", None)
    assert found["special"] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    printed = CliRunner().invoke(app, ["vocabulary", "show", str(folder / "words")])
    assert "WordPiece" in printed.output and "[MASK]" in printed.output
