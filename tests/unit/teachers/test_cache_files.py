"""A cache as files: written in pieces, read in any order, refused once it is not what it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from stlm_kd.artifacts.hashing import sealed, unsealed
from stlm_kd.data.batch import IGNORED, Batch
from stlm_kd.data.batches import BatchStream, PackedRows, numbered_batch
from stlm_kd.data.labelled.batches import AnyBatch
from stlm_kd.data.masking import Masking
from stlm_kd.errors import CheckpointError, MissingResourceError, ModelError
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.models.outputs import ModelOutputs, OutputSpec
from stlm_kd.teachers.cache.format import MANIFEST, Layout, read_manifest, shard_name
from stlm_kd.teachers.cache.reader import TeacherCache
from stlm_kd.teachers.cache.shards import Array
from stlm_kd.teachers.cache.writer import Work, columns_of, complete, unwritten, write
from stlm_kd.teachers.cached import CachedTeacher
from stlm_kd.teachers.live import LiveTeacher
from stlm_kd.teachers.protocol import TeacherOutput
from stlm_kd.teachers.targets import Dense, Logits
from tests.support.pico import pico_model
from tests.support.stores import store_of

VOCABULARY, CONTEXT = 61, 8
MASKING = Masking(np.ones(VOCABULARY), mask_id=2, share=0.3)


def packed(*, wrapped: bool = False) -> PackedRows:
    generator = np.random.default_rng(0)
    bodies = [generator.integers(3, VOCABULARY, size).tolist() for size in generator.integers(1, 12, 30)]
    return PackedRows(store_of(bodies), CONTEXT, wrapped=wrapped)


def teacher(family: str = "llama") -> LiveTeacher:
    return LiveTeacher(pico_model(family, vocabulary=VOCABULARY + 3), VOCABULARY)


def work(rows: PackedRows, layout: Layout, *, masking: Masking | None = None, variants: int = 1) -> Work:
    def batch(numbers: object, chosen: object) -> Batch:
        return numbered_batch([rows], numbers, chosen, masking)  # type: ignore[arg-type]

    return Work(layout, len(rows), variants, items_per_shard=5, seed=3, micro_batch=2, batch=batch)


def cached(folder: Path, own: Work, live: LiveTeacher) -> TeacherCache:
    folder.mkdir(exist_ok=True)
    write(folder, own, live, unwritten(folder, own), done=lambda tokens: None)
    complete(folder, own, made_of={"teacher": "t"}, source={}, flops=None)
    return TeacherCache.open(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TeacherCache:
    folder = tmp_path_factory.mktemp("cache")
    return cached(folder, work(packed(), Layout(VOCABULARY, 6, 3, 2.0)), teacher())


def answers(cache: TeacherCache, batch: Batch) -> TopKTail:
    said = CachedTeacher(cache, OutputSpec(head_input=True))(batch, OutputSpec(head_input=True)).distribution
    assert isinstance(said, TopKTail)
    return said


def by_row(cache: TeacherCache, batches: list[Batch]) -> dict[int, list[torch.Tensor]]:
    """The stored outputs of each row, independent of its position."""
    found = {}
    for batch in batches:
        said = answers(cache, batch)
        for place, row in enumerate(batch.example_ids.tolist()):
            kept = batch.labels[place] != IGNORED
            found[row] = [said.ids[place][kept], said.log_probs[place][kept], said.entropy[place][kept]]
    return found


def test_what_is_read_is_what_the_teacher_says(whole: TeacherCache) -> None:
    batch = packed().batch([7, 0, 3])
    said, live = answers(whole, batch), teacher()(batch, OutputSpec(head_input=True)).distribution
    assert isinstance(live, Dense)
    mask = batch.labels != IGNORED
    log = (live.rows(mask).logits(slice(None), VOCABULARY) / 2).log_softmax(-1)
    sparse = said.rows(mask)
    assert torch.allclose(sparse.log_probs, log.topk(6).values, atol=2e-3)
    assert torch.equal(sparse.ids[:, :6], log.topk(6).indices)
    tail = 1 - log.topk(6).values.exp().sum(-1)
    assert torch.allclose(sparse.tail.exp(), tail, atol=2e-3)
    assert torch.allclose(sparse.entropy, -(log.exp() * log).sum(-1), rtol=1e-3)
    assert sparse.label_log_probs is not None
    of_label = log.gather(-1, batch.labels[mask][:, None]).squeeze(-1)
    assert torch.allclose(sparse.label_log_probs, of_label, rtol=1e-3)
    assert not (sparse.ids[:, 6:, None] == sparse.ids[:, None, :6]).any(), "draws are from outside the head"
    assert whole.manifest.covered == pytest.approx(float(1 - by_mean(whole)), abs=1e-3)


def by_mean(cache: TeacherCache) -> float:
    """The mean mass of the tail, from the files alone."""
    tails = [load_file(cache.folder / shard_name(n))["tail"] for n in range(len(cache.manifest.shards))]
    return float(np.exp(np.concatenate(tails).astype(np.float64)).mean())


def test_order_epochs_micro_batches_and_ranks_do_not_change_what_is_said_of_a_row(
    whole: TeacherCache,
) -> None:
    rows = packed()
    expected = by_row(whole, [rows.batch(range(len(rows)))])
    for sizes in ({"micro_batch": 4}, {"micro_batch": 1}, {"micro_batch": 2, "rank": 1, "world_size": 2}):
        stream = BatchStream([rows], effective_batch=4, seed=1, **sizes)
        batches = [batch for index in range(2 * stream.steps_per_epoch) for batch in stream.step(index)]
        for row, said in by_row(whole, batches).items():
            if row >= 0:
                assert all(torch.allclose(*pair, rtol=1e-6) for pair in zip(said, expected[row], strict=True))


def test_a_killed_and_resumed_cache_has_the_same_bytes(whole: TeacherCache, tmp_path: Path) -> None:
    own, live = work(packed(), whole.layout), teacher()

    class Killed(Exception):
        pass

    def kill_after(calls: int) -> Callable[[int], None]:
        left = iter(range(calls))

        def done(tokens: int) -> None:
            if next(left, None) is None:
                raise Killed

        return done

    with pytest.raises(Killed):
        write(tmp_path, own, live, unwritten(tmp_path, own), done=kill_after(4))
    assert unwritten(tmp_path, own) == list(range(1, own.num_shards))
    shard = tmp_path / shard_name(0)
    before = shard.read_bytes()
    shard.write_bytes(before[:-8] + bytes(8))  # damaged meanwhile
    assert unwritten(tmp_path, own) == list(range(own.num_shards))
    shard.write_bytes(before)
    write(tmp_path, own, live, unwritten(tmp_path, own)[::-2], done=lambda tokens: None)
    cached(tmp_path, own, live)
    names = sorted(path.name for path in whole.folder.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    assert all((whole.folder / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_each_variant_of_a_masked_row_is_found_by_what_it_reads(tmp_path: Path) -> None:
    rows, live = packed(wrapped=True), teacher("bert")
    cache = cached(tmp_path, work(rows, Layout(VOCABULARY, 6, 3), masking=MASKING, variants=3), live)
    stream = BatchStream([rows], effective_batch=3, micro_batch=3, seed=0, masking=MASKING, variants=3)
    seen: dict[int, set[bytes]] = {}
    for index in range(6 * stream.steps_per_epoch):
        for batch in stream.step(index):
            mask, said = batch.labels != IGNORED, answers(cache, batch)
            dense = live(batch, OutputSpec(head_input=True)).distribution
            assert isinstance(dense, Dense)
            log = dense.rows(mask).logits(slice(None), VOCABULARY).log_softmax(-1)
            assert torch.allclose(said.rows(mask).log_probs, log.topk(6).values, atol=2e-3)
            for row, ids in zip(batch.example_ids.tolist(), batch.input_ids, strict=True):
                seen.setdefault(row, set()).add(ids.numpy().tobytes())
    assert max(map(len, seen.values())) == 3
    together = BatchStream([rows], effective_batch=3, micro_batch=3, seed=0, masking=MASKING)
    with pytest.raises(CheckpointError, match="its tokens differ"):
        answers(cache, together.step(0)[0])


def test_any_split_of_a_step_has_the_same_variants() -> None:
    rows = packed(wrapped=True)
    shared = {"effective_batch": 4, "seed": 2, "masking": MASKING, "variants": 3}
    whole = BatchStream([rows], micro_batch=4, **shared).step(1)[0]  # type: ignore[arg-type]
    for rank in range(2):
        stream = BatchStream([rows], micro_batch=1, rank=rank, world_size=2, **shared)  # type: ignore[arg-type]
        parts = stream.step(1)
        assert torch.equal(torch.cat([part.input_ids for part in parts]), whole.input_ids[rank::2])
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels[rank::2])


def test_all_attended_positions_and_states_are_kept_where_they_are_asked(tmp_path: Path) -> None:
    rows, live = packed(), teacher()
    layout = Layout(VOCABULARY, 6, 3, positions="attended", states={"0": 16, "last": 16})
    cache = cached(tmp_path, work(rows, layout), live)
    batch = rows.batch([4, 1])
    needs = OutputSpec(head_input=True, sites=frozenset({0, "last"}))
    said, expected = CachedTeacher(cache, needs)(batch, needs), live(batch, needs)
    mask = batch.attention_mask
    assert said.observed.states.keys() == {0, "last"}
    for site, state in said.observed.states.items():
        assert torch.allclose(state[mask], expected.observed.states[site][mask], rtol=2e-3, atol=1e-3)
    assert cache.manifest.tokens == rows.num_tokens


@pytest.mark.parametrize("logits", [False, True])
def test_a_teacher_that_says_nan_is_refused_by_row_and_one_that_rules_out_is_not(
    tmp_path: Path, logits: bool
) -> None:
    rows = packed()
    layout = Layout(VOCABULARY, 0, 0, logits=True) if logits else Layout(VOCABULARY, 6, 3)
    own, values = work(rows, layout), torch.zeros(2, CONTEXT, VOCABULARY)
    values[:, :, 4:] = -torch.inf
    assert np.isneginf(columns_said(values, own)["logits" if logits else "tail"]).any()
    for broken in (torch.nan, torch.inf, -torch.inf):
        values[1, 2] = broken
        with pytest.raises(ModelError, match="row 7 of the training data contain NaN or infinity"):
            columns_said(values, own)


def columns_said(values: torch.Tensor, own: Work) -> Mapping[str, Array]:
    """What is kept of rows 6 and 7 of a teacher that says these logits."""

    def saying(batch: AnyBatch, needs: OutputSpec) -> TeacherOutput:
        return TeacherOutput(Logits(values), ModelOutputs())

    return columns_of(saying, packed().batch([6, 7]), torch.ones(2, CONTEXT).bool(), range(6, 8), own)


def test_a_row_that_is_not_the_cached_one_is_refused(whole: TeacherCache) -> None:
    batch = packed().batch([2])
    batch.input_ids[0, 0] += 1
    with pytest.raises(CheckpointError, match="row 2 of the training data is not the one that was cached"):
        answers(whole, batch)
    batch = packed().batch([2])
    batch.example_ids[0] = 999
    with pytest.raises(CheckpointError, match="row 999"):
        answers(whole, batch)


def copied(cache: TeacherCache, folder: Path) -> Path:
    for path in cache.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_shard_cut_short_or_edited_is_refused_by_name(whole: TeacherCache, tmp_path: Path) -> None:
    shard = copied(whole, tmp_path) / shard_name(1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-7])
    with pytest.raises(CheckpointError, match=f"{shard_name(1)}: {len(content) - 7:,} bytes found, expected"):
        TeacherCache.open(tmp_path)
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"{shard_name(1)}: changed since the cache was completed"):
        TeacherCache.open(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard_name(1)}: missing"):
        TeacherCache.open(tmp_path)


@pytest.mark.parametrize("edit", ["header", "type", "shape", "offsets", "ids"])
def test_a_shard_that_lies_about_itself_is_refused(whole: TeacherCache, tmp_path: Path, edit: str) -> None:
    """Even where its size and hash are made to fit."""
    path = copied(whole, tmp_path) / shard_name(0)
    columns = load_file(path)
    if edit == "ids":
        columns["ids"][:] = 65_000
    if edit == "type":
        columns["tail"] = columns["tail"].astype(np.float32)
    if edit == "shape":
        columns["lengths"][0] += 1
    save_file(columns, path)
    raw = path.read_bytes()
    if edit == "header":
        path.write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])
    if edit == "offsets":
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header["ids"]["data_offsets"] = [10**6, 10**6 + 10]
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
    complete_again(tmp_path, path)
    with pytest.raises(CheckpointError, match="damaged"):
        answers(TeacherCache.open(tmp_path, every_byte=False), packed().batch([0]))


def complete_again(folder: Path, path: Path) -> None:
    content = unsealed(json.loads((folder / MANIFEST).read_text()))
    content["shards"][0]["bytes"] = path.stat().st_size
    (folder / MANIFEST).write_text(json.dumps(sealed(content)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "format 9 found, expected 1"),
        ({"rows": "many"}, "damaged at rows"),
        ({"rows": 10**6}, "are inconsistent"),
        ({"layout": {"vocabulary": -1, "head": 1, "draws": 1}}, "are inconsistent"),
    ],
)
def test_a_damaged_manifest_is_refused(
    whole: TeacherCache, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    content = json.loads((copied(whole, tmp_path) / MANIFEST).read_text())
    if "format" not in change:
        (tmp_path / MANIFEST).write_text(json.dumps({**content, **change}))
        with pytest.raises(CheckpointError, match="does not have the hash that is stated in it"):
            read_manifest(tmp_path)
    del content["sha256"], content["sealed"]  # as earlier versions wrote it
    (tmp_path / MANIFEST).write_text(json.dumps({**content, **change}))
    with pytest.raises(CheckpointError, match=message):
        read_manifest(tmp_path)


def test_a_cache_that_is_not_there_is_a_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"no teacher cache there \(no such folder\)") as missing:
        read_manifest(tmp_path / "elsewhere")
    assert missing.value.exit_code == 5
    with pytest.raises(MissingResourceError, match=r"no teacher cache there \(no manifest.json in it\)"):
        read_manifest(tmp_path)
