"""The cells of ``vocabularies.py``, and the file of the finished ones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = "results.jsonl"
OWN, NOVELS, WIKITEXT, BLIMP, ARC, WHOLE = "own", "novels", "wikitext-2", "blimp", "arc_easy", "blimp, whole"


@dataclass(frozen=True, slots=True)
class Settings:
    """What determines the results; a folder holds those of one."""

    model: str
    data: str
    tokens: tuple[int, ...]
    learning_rate: float
    pairs: int
    questions: int
    pieces: int
    large: int
    small: int

    @property
    def tokenizers(self) -> dict[str, str]:
        """The vocabularies by name, as ``student.tokenizer`` in a recipe."""
        return {
            f"trimmed {self.large:,}": f"{{trim: teacher, size: {self.large}}}",
            f"trimmed {self.small:,}": f"{{trim: teacher, size: {self.small}}}",
            f"preferred {self.small:,}": f"{{train: bpe, size: {self.small}, prefer: teachers}}",
            f"plain BPE {self.small:,}": f"{{train: bpe, size: {self.small}}}",
            "GPT-2's 50,257": quoted(f"{self.data}/tokenizers/gpt2"),
        }


@dataclass(frozen=True, slots=True)
class Model:
    """The teacher in a vocabulary, trained on a text where there are tokens."""

    vocabulary: str
    tokens: int = 0
    text: str = ""

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", f"{self.vocabulary} {self.text} {self.tokens}".lower())


Cell = tuple[Model, str]
"""A model, and the score that it gets."""


def cells(settings: Settings) -> Iterator[Cell]:
    """All cells in their order."""
    untrained = [Model(OWN), *map(Model, settings.tokenizers)]
    yield from ((model, text) for model in untrained for text in (NOVELS, WIKITEXT))
    benchmarked = untrained
    for tokens in settings.tokens:
        trained = [Model(name, tokens, NOVELS) for name in settings.tokenizers]
        yield from ((model, NOVELS) for model in trained)
        yield from ((model, score) for model in [*benchmarked, *trained] for score in (BLIMP, ARC))
        yield from ((Model(name, tokens, WIKITEXT), WIKITEXT) for name in settings.tokenizers)
        benchmarked = []
    largest = next(iter(settings.tokenizers))
    last = [Model(largest, tokens, NOVELS) for tokens in settings.tokens[-1:]]
    yield from ((model, WHOLE) for model in (Model(OWN), Model(largest), *last))


class Results:
    """The finished cells of a folder; a line that a killed process left half-written is dropped."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESULTS
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in text.split("\n")[:-1]]
        if not text.endswith("\n") and text:
            write_whole(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def find(self, model: Model, score: str) -> dict[str, Any] | None:
        """The line of a cell; None if it is not finished."""
        key = {**asdict(model), "score": score}
        return next((line for line in self.lines if key.items() <= line.items()), None)

    def add(self, model: Model, score: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Append a line, and return when it is on the disk."""
        line = {**asdict(model), "score": score, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines.append(line)
        return line


def quoted(text: str) -> str:
    """As a value in YAML."""
    return json.dumps(text)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
