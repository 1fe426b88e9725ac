"""docs/python.md and docs/commands.md: examples that run, and every function, command and option."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import stlm_kd
from stlm_kd import errors
from stlm_kd.cli.main import app
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.models.heads.classifiers import classifier_from_fields
from stlm_kd.models.load import save_model
from tests.support.hostile import corpus
from tests.support.paths import ROOT
from tests.support.road import LLAMA, TRAIN

TEXT = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
RECIPE = f"""
task: clm
student: {{tokenizer: my-tokenizer, architecture: {LLAMA}}}
teachers: [{{name: a, model: same}}, {{name: b, model: padded}}]
data: {{train: news.txt, validation: held-out.txt, context: 64}}
objectives: [{{loss: labels}}, {{loss: forward_kl}}]
{TRAIN}
eval: [perplexity]
controls: [no-teacher]
tracking: []
"""


@pytest.fixture
def prepared(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples name: a recipe, models, text and labelled examples."""
    files = {"own": "my-tokenizer", "train.txt": "news.txt", "valid.txt": "held-out.txt"}
    for source in ("same", "padded", "gpt2", *files):
        copy = shutil.copytree if (road / source).is_dir() else shutil.copy
        copy(road / source, tmp_path / files.get(source, source))
    (tmp_path / "my.yaml").write_text(RECIPE)
    texts = ["a good tale", "a bad tale", "the good dog", "a bad cat"] * 4
    tokenizer = train_tokenizer(texts, "bpe", 270, masked=True)
    fields = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, name in enumerate(("classifier", "small-classifier")):
        classifier = classifier_from_fields(fields, tokenizer, labels=("bad", "good"), context=32, seed=seed)
        save_model(classifier, tokenizer, tmp_path / name)
    rows = [{"idx": i, "sentence": text, "label": int("good" in text)} for i, text in enumerate(texts)]
    (tmp_path / "reviews.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    monkeypatch.chdir(tmp_path)


def test_the_examples_run(prepared: None) -> None:
    names: dict[str, object] = {}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)):
        exec(compile(code, f"docs/python.md, example {number}", "exec"), names)
    assert Path("report.html").is_file() and Path("merged", "manifest.json").is_file()


def test_every_function_that_a_command_calls_is_public_and_in_an_example() -> None:
    examples = "".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cli").rglob("*.py"))
    called = set(re.findall(r"\bstlm_kd\.([a-z_]+)\(", sources))
    assert {"distill", "evaluate", "report"} <= called <= set(stlm_kd.__all__)
    assert [name for name in sorted(called) if f"stlm_kd.{name}(" not in examples] == []


def commands(group: Any, name: str = "stlm-kd") -> Iterator[tuple[str, Any]]:
    """Every command by its whole name."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def options(command: Any) -> set[str]:
    """The long options of a command."""
    return {word for one in command.params for word in (*one.opts, *one.secondary_opts) if word[:2] == "--"}


def test_the_commands_page_has_each_command_with_its_options_and_no_others() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    parts = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    named = {title: set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) for title, text in parts.items()}
    shared = named.pop("Options of several commands")
    root = get_command(app)
    known = dict(commands(root))
    assert set(known) == {title for title in named if title.startswith("stlm-kd ")}
    for title, command in known.items():
        assert options(command) - shared == (named[title] & options(command)) - shared, title
        assert named[title] <= options(command) | options(root) | {"--processes"}, title
    everywhere = set.union(options(root), *map(options, known.values()))
    assert shared <= everywhere and "--import" in shared


def test_the_commands_page_has_each_exit_code() -> None:
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert codes == {0} | {kind.exit_code for kind in kinds if issubclass(kind, errors.StlmKdError)}


def _named_tests(page: str) -> Iterator[tuple[str, str]]:
    """The rows of the tables on security, with each name in the column of tests."""
    for line in page.splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ") and len(cells) == 3 and cells[-1] != "test":
            names = re.findall(r"`([^`]+)`", cells[-1])
            yield from ((line, name) for name in names or [""])


def test_each_promise_on_security_names_tests_that_exist() -> None:
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    known = set(re.findall(r"(?m)^def (test_\w+)", "\n".join(sources.values())))
    cases = {case.name for case in corpus()}
    named = [*_named_tests((ROOT / "docs" / "security.md").read_text(encoding="utf-8"))]
    assert len({line for line, _ in named}) > 50
    for line, name in named:
        start = name.removesuffix("…").removesuffix(" ")
        if name.startswith("tests/"):
            assert (ROOT / name).is_file(), line
        elif name.startswith("test_"):
            assert start in known if start == name else any(one.startswith(start) for one in known), line
        else:
            assert name and any(name.strip("… ") in case for case in cases), line
