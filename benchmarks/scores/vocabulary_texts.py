"""The texts of ``vocabularies.py``: novels and WikiText-2, to choose tokens, train, validate and score."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from pathlib import Path

from vocabulary_cells import NOVELS, WIKITEXT, Settings, write_whole

PIECE = 2500
"""Characters of a held-out piece."""

_OTHER = """
task: clm
student:
  tokenizer: {train: bpe, size: 16384}
  architecture: {model_type: llama, hidden_size: 64, intermediate_size: 172, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, tie_word_embeddings: true}
data: {train: {path: wikitext-2.jsonl}, validation: {path: wikitext-2-valid.jsonl}, context: 256}
objectives: [{loss: labels}]
train: {steps: 100, effective_batch: 8, learning_rate: 3e-3, keep: last}
"""  # noqa: E501


def write_texts(settings: Settings, folder: Path) -> None:
    """Write the texts: ``broad`` (all that chooses tokens), and those to train on, validate on and score."""
    data = Path(settings.data) / "lm"
    train = [text for i in range(3) for text in novels(data, f"train-0{i}")]
    of_novels = [
        one for turn in zip(*(pieces(text, 8, 20_000) for text in train), strict=True) for one in turn
    ]
    first, second, third, fourth = novels(data, "valid")
    half = -(-settings.pieces // 2)
    marked = [text.replace("<unk> ", "") for text in articles(data / "wikitext-2/train.txt.gz")]
    raw = [text[:PIECE] for text in articles(data / "wikitext-2-raw/test.txt.gz") if len(text) >= PIECE]
    texts = {
        "broad": [*of_novels, *marked],
        WIKITEXT: marked,
        f"{NOVELS}-train": of_novels,
        f"{NOVELS}-valid": [*pieces(first, 4, PIECE), *pieces(third, 4, PIECE)],
        f"{NOVELS}-test": [*pieces(second, half, PIECE), *pieces(fourth, half, PIECE)],
        f"{WIKITEXT}-train": articles(data / "wikitext-2-raw/valid.txt.gz"),
        f"{WIKITEXT}-valid": raw[-8:],
        f"{WIKITEXT}-test": raw[:-8][: 2 * half],
    }
    for name, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        write_whole(folder / f"{name}.jsonl", lines)
    write_whole(folder / "other.yaml", _OTHER)


def novels(data: Path, name: str) -> list[str]:
    with lzma.open(data / f"english_novels/{name}.jsonl.xz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def articles(path: Path) -> list[str]:
    """The articles of WikiText, which begin at lines `` = Title = ``."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        found = re.split(r"(?m)^(?= = [^=\n]+ = $)", file.read())
    return [text.strip() for text in found if text.strip()]


def pieces(text: str, count: int, size: int, skip: int = 20_000) -> list[str]:
    """Pieces of so many characters, spread evenly behind the front matter, each from a paragraph's start."""
    starts = [skip + i * ((len(text) - skip - size) // count) for i in range(count)]
    starts = [text.find("\n\n", start) + 2 for start in starts]
    return [text[start : start + size] for start in starts]
