"""Seeded damages to everything that is found again: made again, passed over or refused, but never taken."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.record import new_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD, RunFolder
from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.data.corpus import prepare
from stlm_kd.data.sources.sources import Source
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import StlmKdError
from stlm_kd.teachers.cache.format import Layout, shard_name
from stlm_kd.teachers.cache.reader import TeacherCache
from stlm_kd.teachers.cache.shards import write_shard
from stlm_kd.teachers.cache.writer import Work, complete, unwritten
from stlm_kd.training.checkpoint import CheckpointStore, TrainingState
from tests.support.damage import KINDS, damage

TIMES, TIMES_LONG = 100, 1000
"""Damages of each thing."""


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["a b c"], size=258 + 2)


def tokens(folder: Path) -> object:
    (folder / "text.txt").write_text("one two three\nfour five\nsix")
    (found,) = prepare([Source(path=str(folder / "text.txt"))], tokenizer(), folder / "kept")
    return found.store.tokens.tolist(), found.store.offsets.tolist(), found.store.document_hashes.tolist()


def stage(folder: Path) -> object:
    def build(target: Path) -> None:
        (target / "model").mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (target / "model" / name).write_text(f"the content of {name}")
        (target / "report.json").write_text('{"loss": 1.5}')

    made = Stages(folder / "kept").make("model", {"seed": 1}, build)
    return sorted(path.read_text() for path in made.rglob("*") if path.is_file())


LAYOUT = Layout(vocabulary=9, head=2, draws=1)
WORK = Work(LAYOUT, 4, 1, 2, seed=0, micro_batch=1, batch=lambda rows, variants: None)  # type: ignore[arg-type,return-value]


def write_shards(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for shard in unwritten(folder, WORK):
        draw = np.random.default_rng(shard)
        columns = {
            name: draw.random((4, width) if width else 4).astype(dtype)
            for name, (dtype, width) in LAYOUT.columns().items()
        }
        write_shard(folder / shard_name(shard), LAYOUT, np.array([1, 3]), np.array([5, 6]), columns)


def shards(folder: Path) -> object:
    """The shards of an unfinished cache."""
    write_shards(folder / "kept")
    return [(folder / "kept" / shard_name(shard)).read_bytes() for shard in range(WORK.num_shards)]


def named_cache(folder: Path) -> object:
    if not (folder / "kept").exists():
        write_shards(folder / "kept")
        complete(folder / "kept", WORK, made_of={"teacher": "x"}, source={}, flops=None)
    opened = TeacherCache.open(folder / "kept")
    found = opened.items(range(WORK.items))
    return opened.manifest, found.lengths.tolist(), {name: c.tolist() for name, c in found.columns.items()}


def checkpoint(folder: Path) -> object:
    """The newest checkpoint that is whole, of two with the same tensors."""
    store = CheckpointStore(folder / "kept", "abc")
    tensors = {"w": torch.arange(8.0), "n": torch.tensor(3)}
    if not store.folder.exists():
        for step in (4, 8):
            store.save(TrainingState(step, 10 * step, best_step=4), model=tensors, optimizer=tensors)
    found = store.newest()
    assert found.state is not None
    assert (found.state.step == 8) != bool(found.notes)
    assert found.state.tokens == 10 * found.state.step and found.state.best_step == 4
    read = [store.tensors(found.state.step, name) for name in ("model", "optimizer")]
    return [{name: tensor.tolist() for name, tensor in sorted(part.items())} for part in read]


def run(folder: Path) -> object:
    path = folder / "kept" / "run"
    names = ("results.json", "table.txt", "teachers/q/model.safetensors", "making/q/adaptation/report.json")
    if not path.exists():
        for name in (RECIPE, *names):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(f"the content of {name}")
        record = new_record("x", "abc", "stlm-kd")
        write_json(path / RECORD, asdict(record))
        RunFolder(path, record).finish("done")
    for name in names:
        refuse_changed(path / name)
    refuse_changed(path / "teachers/q")
    return [(path / name).read_text() for name in names]


REMADE: tuple[Callable[[Path], object], ...] = (tokens, stage, shards)
REFUSED: tuple[Callable[[Path], object], ...] = (named_cache, checkpoint, run)


def assert_same_or_refused(read: Callable[[Path], object], folder: Path, times: int, seed: int) -> None:
    """Build a thing, damage copies of it, and read each: the same again, or one of our errors."""
    whole = folder / "whole"
    whole.mkdir()
    expected = read(whole)
    for number in range(times):
        draw = random.Random(f"{read.__name__} {seed} {number}")
        copy = folder / str(number)
        shutil.copytree(whole, copy)
        what = damage(copy / "kept", draw, KINDS[number % len(KINDS)])
        try:
            found = read(copy)
        except StlmKdError as error:
            assert read in REFUSED, what
            assert str(copy) in str(error), (what, str(error))
        else:
            assert found == expected, what
        shutil.rmtree(copy)


@pytest.mark.parametrize("read", [*REMADE, *REFUSED], ids=lambda read: read.__name__)
def test_damage_is_never_taken_for_what_was_made(read: Callable[[Path], object], tmp_path: Path) -> None:
    assert_same_or_refused(read, tmp_path, TIMES, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("read", [*REMADE, *REFUSED], ids=lambda read: read.__name__)
def test_thousands_of_damages_are_never_taken_for_what_was_made(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    assert_same_or_refused(read, tmp_path, TIMES_LONG, seed=2)


@pytest.mark.parametrize("read", [tokens, stage, checkpoint], ids=lambda read: read.__name__)
def test_json_that_is_nested_too_deeply_is_damage(read: Callable[[Path], object], tmp_path: Path) -> None:
    """A parser's RecursionError is no other error than that of a file that is no JSON."""
    expected = read(tmp_path)
    (*_, manifest) = sorted(
        path
        for path in (tmp_path / "kept").rglob("*.json")
        if path.name in ("manifest.json", "stage.json", "checksums.json")
    )
    manifest.write_text("[" * 100_000)
    assert read(tmp_path) == expected
