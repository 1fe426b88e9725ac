"""One cache of several teachers', as files: of other sizes, by name, in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.data.batch import Batch
from stlm_kd.errors import CheckpointError, UsageError
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.pipeline.cache import inspect_cache
from stlm_kd.teachers.cache import merge
from stlm_kd.teachers.cache.format import Json, Layout, read_manifest, shard_name
from stlm_kd.teachers.cache.merge import merge_caches, mixed, names_of
from stlm_kd.teachers.cache.reader import Found, TeacherCache, distribution
from stlm_kd.teachers.cache.sampling import head_and_tail, uniforms
from stlm_kd.teachers.cache.shards import write_shard
from stlm_kd.teachers.cache.writer import Work, complete
from tests.support.road import done, stlm_kd

OUTCOMES, LENGTHS = 30, np.array([3, 0, 5, 1, 4, 2, 6])
TOKENS = int(LENGTHS.sum())


def no_batch(rows: object, variants: object) -> Batch:
    raise AssertionError


def logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(TOKENS, OUTCOMES, generator=torch.Generator().manual_seed(seed))


def cached(
    folder: Path,
    teacher: str,
    seed: int,
    *,
    head: int = 6,
    per_shard: int = 3,
    context: int = 8,
    precision: str = "fp32",
) -> Path:
    """A teacher's cache of the same seven rows, whose top tokens and draws are as many."""
    folder.mkdir()
    layout = Layout(OUTCOMES, head, head)
    work = Work(layout, len(LENGTHS), 1, per_shard, seed, 1, no_batch)
    ends = np.cumsum([0, *LENGTHS])
    for shard in range(work.num_shards):
        items = np.asarray(work.items_of(shard))
        own = slice(ends[items[0]], ends[items[-1] + 1])
        size = own.stop - own.start
        numbers = torch.from_numpy(uniforms(seed, np.arange(own.start, own.stop), np.zeros(size, int), head))
        made = head_and_tail(logits(seed)[own], torch.full((size,), 5), numbers, head=head, temperature=1.0)
        columns = {name: values.numpy() for name, values in made.items()}
        write_shard(folder / shard_name(shard), layout, LENGTHS[items], items, columns)
    made_of: dict[str, Json] = {"teacher": f"hash of {teacher}", "top": head, "draws": head}
    made_of |= {"context": context, "precision": precision}
    complete(folder, work, made_of=made_of, source={"teacher": teacher}, flops=7)
    return folder


def said(folder: Path) -> TopKTail:
    cache = TeacherCache.open(folder)
    found = cache.items(range(len(LENGTHS)))
    assert found.lengths.tolist() == LENGTHS.tolist()
    target = distribution(Found(torch.ones(TOKENS, dtype=torch.bool), found.columns), cache.layout)
    assert isinstance(target, TopKTail)
    return target


def test_caches_of_two_sizes_are_merged_into_what_both_surely_know(tmp_path: Path) -> None:
    folders = [
        cached(tmp_path / "a", "a", 1, head=6, precision="fp32"),
        cached(tmp_path / "b", "b", 2, head=4, per_shard=2, precision="bf16"),
    ]
    output = merge_caches(folders, how="mean", options={}, output=tmp_path / "both")
    merged = said(output)
    assert (merged.log_probs.shape[-1], merged.ids.shape[-1]) == (4, 10)
    probs = [logits(seed).softmax(-1) for seed in (1, 2)]
    heads = [
        prob.where(prob >= prob.topk(head).values[:, -1:], 0.0)
        for prob, head in zip(probs, (6, 4), strict=True)
    ]
    expected = (0.5 * (heads[0] + heads[1])).topk(4)
    assert torch.allclose(merged.log_probs.exp(), expected.values, rtol=6e-3)
    assert torch.equal(merged.ids[:, :4].sort(-1).values, expected.indices.sort(-1).values)
    assert torch.allclose(merged.masses().sum(-1), torch.ones(TOKENS), atol=1e-5)
    made_of = read_manifest(output).made_of
    assert [made_of[name] for name in ("top", "draws", "precision")] == [4, 6, ["fp32", "bf16"]]


def test_caches_of_other_data_and_one_that_is_given_twice_are_refused(tmp_path: Path) -> None:
    first = cached(tmp_path / "a", "a", 1)
    other = cached(tmp_path / "b", "b", 2, context=16)
    with pytest.raises(CheckpointError, match=r"a \(a\) and .*b \(b\) differ in data\.context"):
        merge_caches([first, other], how="mean", options={}, output=tmp_path / "m")
    again = cached(tmp_path / "copy", "a", 1)
    with pytest.raises(UsageError, match=r"a and .*copy are the same cache"):
        merge_caches([first, again], how="mean", options={}, output=tmp_path / "m")


def test_teachers_keep_their_names_and_numbers_stand_for_them_too(tmp_path: Path) -> None:
    folders = [cached(tmp_path / "1", "gpt2", 1), cached(tmp_path / "2", "llama", 2)]
    made = []
    for number, weights in enumerate(({"gpt2": 3.0, "llama": 1.0}, {"0": 3.0, "llama": 1.0})):
        output, given = tmp_path / f"m{number}", dict[str, Json](weights)
        made.append(merge_caches(folders, how="weighted", options={"weights": given}, output=output))
    manifests = [read_manifest(folder) for folder in made]
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert manifests[1].source["names"] == ["gpt2", "llama"]
    assert inspect_cache(made[1]).teacher == "gpt2, llama merged"
    probs = said(made[1]).label_log_probs
    assert probs is not None
    expected = 0.75 * logits(1).softmax(-1)[:, 5] + 0.25 * logits(2).softmax(-1)[:, 5]
    assert torch.allclose(probs.exp(), expected, rtol=1e-2)
    wrong: list[dict[str, Json]] = [
        {"gpt2": 1.0, "0": 1.0, "llama": 1.0},
        {"gpt2": 0, "llama": 0},
        {"gpt2": -1, "llama": 1},
        {"gpt2": "much", "llama": 1},
    ]
    for weights in wrong:
        with pytest.raises(UsageError, match="one number for each cache, not all 0, such as gpt2=1,llama=1"):
            merge_caches(folders, how="weighted", options={"weights": weights}, output=tmp_path / "m")
    words = ["teacher", "merge", *map(str, folders), "--how", "weighted", "--weights", "gpt2=3,llama=1"]
    assert CliRunner().invoke(app, [*words, "--output", str(tmp_path / "again")]).exit_code == 0
    assert read_manifest(tmp_path / "again").fingerprint == manifests[0].fingerprint
    words[4:] = ["--how", "entropy", "--sharpness", "0", "--output", str(tmp_path / "m")]
    assert "--sharpness 0.0: expected a number above 0" in CliRunner().invoke(app, words).stderr
    third = [read_manifest(folder) for folder in (*folders, made[0])]
    assert names_of(third) == ["gpt2", "llama", "gpt2+llama"]
    assert names_of([third[0], third[1], third[0]]) == ["0", "llama", "2"]


def test_pieces_of_a_few_tokens_make_the_same_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [cached(tmp_path / "a", "a", 1, per_shard=5), cached(tmp_path / "b", "b", 2, per_shard=2)]
    sizes: list[int] = []

    def noting(targets: Sequence[TopKTail], *given: Any) -> Mapping[str, torch.Tensor]:
        sizes.append(len(targets[0].ids))
        return mixed(targets, *given)

    monkeypatch.setattr(merge, "mixed", noting)
    whole = merge_caches(folders, how="entropy", options={}, output=tmp_path / "whole")
    assert sizes == [13, 8]
    monkeypatch.setattr(merge, "PIECE_TOKENS", 1)
    pieces = merge_caches(folders, how="entropy", options={}, output=tmp_path / "pieces")
    assert sizes[2:] == LENGTHS.tolist()
    assert read_manifest(pieces).fingerprint == read_manifest(whole).fingerprint


def test_a_merged_caches_bytes_are_verified_without_a_teacher(tmp_path: Path) -> None:
    folders = [cached(tmp_path / "a", "a", 1), cached(tmp_path / "b", "b", 2)]
    output = merge_caches(folders, how="mean", options={}, output=tmp_path / "both")
    result = stlm_kd("teacher", "verify", str(output))
    assert (result.exit_code, "the checksums of all its files are right" in result.stdout) == (0, True)
    assert done("teacher", "verify", str(output))["agrees"] is None
    shard = output / shard_name(1)
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    damaged = stlm_kd("teacher", "verify", str(output))
    assert damaged.exit_code == CheckpointError.exit_code
    assert "changed since the cache was completed" in damaged.stderr
