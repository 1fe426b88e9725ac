"""Classes of holes that were published for trainers, trackers, tokenizers and formats of weights."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stlm_kd.data.labelled.encoding import encode_texts
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.errors import ModelError, RecipeError, StlmKdError
from stlm_kd.models.load import load_language_model
from stlm_kd.pipeline.recording import create
from stlm_kd.recipe import load
from tests.support.paths import ROOT
from tests.support.road import stlm_kd

CALLS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("np", "load"), ("os", "system")}
SUSPECT = re.compile(rf"{'|'.join(MODULES)}|(?<![.\w])({'|'.join(CALLS)})\(|\.(unsafe_)?load\b|\.system\b")
SOURCES = sorted(
    path for part in ("stlm_kd", "cli", "eval", "recipes") for path in (ROOT / part).rglob("*.py")
)


def test_no_module_reads_pickles_or_runs_text() -> None:
    found = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if SUSPECT.search(text) else ():
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names} & MODULES
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]} & MODULES
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id} & CALLS
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {node.attr} if (node.value.id, node.attr) in ATTRIBUTES else set()
            found += [(path.relative_to(ROOT).as_posix(), name) for name in names]
    assert len(SOURCES) > 300 and found == []


class Evil:
    """A pickle that shows that it was read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was read')",)


OPENED: list[str] = []
PICKLES = (
    "pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "training_args.bin", "optimizer.pt",
    "scheduler.pt", "rng_state.pth", "tokenizer.pkl", "data.npy", "state.pkl", "adapter_model.bin",
    "tf_model.h5",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def hooked() -> None:
    def hook(event: str, given: tuple[object, ...]) -> None:
        if event == "open" and str(given[0]).endswith(PICKLES):
            OPENED.append(str(given[0]))

    sys.addaudithook(hook)


def plant(folder: Path) -> None:
    """Put pickles into a folder and those in it."""
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in PICKLES:
            (place / name).write_bytes(pickle.dumps(Evil()))


def test_pickles_beside_models_text_checkpoints_and_stages_are_not_opened(
    road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, out = tmp_path / "world", tmp_path / "out"
    shutil.copytree(road, world, ignore=shutil.ignore_patterns("runs", "bad*"))
    monkeypatch.chdir(world)
    for name in ("own", "same"):
        plant(world / name)
    changes = ["train.steps=2", "student={tokenizer: own, model: same}", "--no-rehearsal"]
    words = ["distill", "-r", "plain.yaml", *changes, "--output-dir", str(out)]
    OPENED.clear()
    assert stlm_kd(*words).exit_code == 0
    (run,) = out.glob("plain-*")
    assert len(OPENED) == 0
    plant(run / "students")
    plant(out / "stages")
    OPENED.clear()
    stlm_kd(*words)
    assert OPENED == []


NAMES = ("../../evil", "/evil", "..", "a/../../evil", "evil\x00", "\u202eevil", "x" * 999, "", ".git", "-rf")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_never_leads_out_of_the_output_folder(name: str, place: Path, tmp_path: Path) -> None:
    run = create(load("plain.yaml"), name=name, output_dir=tmp_path / "out", command="")
    assert run.path.parent == tmp_path / "out" and run.path.name[0].isalnum() and len(run.path.name) < 99
    assert run.path.name.isascii() and run.path.name.isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_teachers_name_which_names_folders_is_no_path(name: str, place: Path) -> None:
    with pytest.raises(RecipeError, match=r"teachers\[0\]\.name"):
        load("plain.yaml", [f"teachers=[{{name: {json.dumps(name)}, model: same}}]"])


@pytest.fixture
def model(road: Path, tmp_path: Path) -> Path:
    shutil.copytree(road / "same", tmp_path / "model")
    return tmp_path / "model"


def headers() -> Iterator[tuple[str, bytes]]:
    def file(header: object, data: bytes = bytes(64), size: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return (len(text) if size is None else size).to_bytes(8, "little") + text + data

    def one(**change: object) -> dict[str, object]:
        return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **change}}

    yield "empty", b""
    yield "cut", file(one())[:20]
    yield "longer than the file", file(one(), size=2**40)
    yield "largest size", file(one(), size=2**64 - 1)
    yield "no JSON", file(b"\xff" * 64)
    yield "deep", file(b"[" * 100_000)
    yield "deep mapping", file(b'{"a":' * 100_000)
    yield "a list", file([one()])
    yield "beyond the end", file(one(data_offsets=[0, 2**50]))
    yield "backwards", file(one(data_offsets=[16, 0]))
    yield "negative", file(one(data_offsets=[-16, 0]))
    yield "huge shape", file(one(shape=[2**40, 2**40]))
    yield "negative shape", file(one(shape=[-2, -2]))
    yield "shape of floats", file(one(shape=[2.5, 2]))
    yield "unknown type", file(one(dtype="PICKLE"))
    yield "overlap", file({**one(), "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}})
    yield "hole", file({**one(), "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [32, 48]}})
    yield "metadata", file({"__metadata__": {"format": {"x": 1}}, **one()})
    yield "another format", file({"__metadata__": {"format": "pickle"}, **one()})


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in headers()])
def test_an_abused_header_of_weights_is_one_message(content: bytes, model: Path) -> None:
    (model / "model.safetensors").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ModelError, match=str(model)):
        load_language_model(str(model), "clm")
    assert time.monotonic() - began < 20


def test_a_regular_expression_that_would_search_for_years_ends_in_seconds(model: Path) -> None:
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    file.write_text(json.dumps({**content, "pre_tokenizer": split}))
    began = time.monotonic()
    texts = [("a" * 5000 + "!",)]
    with pytest.raises(StlmKdError, match="Regex search error"):
        encode_texts(texts, load_tokenizer(str(model)), context=8, multiple=1)
    assert time.monotonic() - began < 20
