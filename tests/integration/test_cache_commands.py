"""The commands of teachers' caches."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stlm_kd.artifacts.hashing import sealed
from stlm_kd.data.tokenizers import load_tokenizer
from stlm_kd.losses.sampled import TopKTail
from stlm_kd.pipeline.cache import _compared
from stlm_kd.pipeline.stage_keys import model_identity
from stlm_kd.teachers.cache.format import MANIFEST, shard_name
from stlm_kd.teachers.cache.merge import mixed
from stlm_kd.teachers.cache.sampling import head_and_tail
from tests.integration.test_road_cache import taught
from tests.support.loss_checks import estimate
from tests.support.road import done, model_folder, stlm_kd

OUTCOMES, HEAD, DRAWS = 30, 3, 2


def drawn(logits: torch.Tensor, copies: int) -> TopKTail:
    labels = torch.full((copies,), 5)
    numbers = torch.rand(copies, DRAWS, dtype=torch.float64)
    made = head_and_tail(logits.expand(copies, -1), labels, numbers, head=HEAD, temperature=1.0)
    return TopKTail(**made, temperature=1.0, vocabulary=OUTCOMES)


@pytest.mark.parametrize(
    ("how", "options"),
    [("mean", {}), ("weighted", {"weights": {"a": 3, "b": 1}}), ("label-likelihood", {"sharpness": 1.0})],
)
def test_a_mixture_that_is_drawn_again_is_the_mixture_on_average(
    how: str, options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    a, b = (2 * torch.randn(OUTCOMES) for _ in range(2))
    copies, told = 40_000, [logits.log_softmax(-1) for logits in (a, b)]
    numbers = torch.rand(copies, DRAWS, dtype=torch.float64)
    made = mixed([drawn(a, copies), drawn(b, copies)], numbers, HEAD, how, options, ["a", "b"])  # type: ignore[arg-type]  # one of three words
    weight = {"mean": 0.5, "weighted": 0.75}.get(how)
    if weight is None:
        weight = float(torch.stack([log[5] for log in told]).softmax(0)[0])
    expected = weight * told[0].exp() + (1 - weight) * told[1].exp()
    found = TopKTail(**made, temperature=1.0, vocabulary=OUTCOMES)  # type: ignore[arg-type]  # fields of several types
    probs = estimate(found, OUTCOMES)
    error = (probs.mean(0) - expected) / (probs.std(0) / copies**0.5).clamp(min=1e-6)
    assert error.abs().max() < 4.5
    assert torch.allclose(probs.sum(-1), torch.ones(copies), atol=1e-4)
    ids = found.ids[:, :HEAD].sort(-1).values
    assert (ids[:, 1:] != ids[:, :-1]).all(), "an outcome of the head is there once"
    assert (found.log_probs.exp() <= expected[found.ids[:, :HEAD]] + 1e-6).all(), "no draw passes for a head"
    entropies = [-float((log.exp() * log).sum()) for log in told]
    mean_entropy = weight * entropies[0] + (1 - weight) * entropies[1]
    assert float(found.entropy[0]) == pytest.approx(mean_entropy, rel=1e-4)
    assert float(found.label_log_probs[0]) == pytest.approx(float(expected[5].log()), rel=1e-4)  # type: ignore[index]  # which it has


def test_caches_are_made_looked_at_verified_and_merged(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_folder(tmp_path / "m", "llama", load_tokenizer("own"), seed=7)
    name = taught(place, "caches", f"[{{name: a, model: same}}, {{name: m, model: {tmp_path}/m}}]")
    options = ("--output-dir", str(tmp_path))
    made = done("teacher", "cache", "-r", f"{name}.yaml", *options)
    assert [entry["teacher"] for entry in made] == ["a", "m"]
    first, second = (entry["folder"] for entry in made)
    inspected = done("teacher", "inspect", first)
    cut = Path(shutil.copytree(first, tmp_path / "cut")) / shard_name(0)
    cut.write_bytes(cut.read_bytes()[:-2])
    refused = stlm_kd("teacher", "inspect", str(cut.parent))
    assert (refused.exit_code, f"{cut}: {cut.stat().st_size:,} bytes found" in refused.stderr) == (1, True)
    assert inspected["bytes_per_token"] < 88
    assert 0 < inspected["head_covers"] < 1
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path)
        cache = str(Path(first).relative_to(tmp_path))
        verified = done("teacher", "verify", cache, "--rows", "4", "--output-dir", "again")
    assert (verified["agrees"], (tmp_path / "again").is_dir(), Path.cwd()) == (True, True, place)
    assert verified["ids"] > 0.99
    output = str(tmp_path / "merged")
    merged = done("teacher", "merge", first, second, "--how", "entropy", "--output", output)
    assert merged["tokens"] == inspected["tokens"]
    assert merged["bytes_per_token"] == pytest.approx(inspected["bytes_per_token"], rel=1e-3)
    one = taught(place, "one", f"[{{name: both, cache: {output}}}]")
    assert stlm_kd("distill", "-r", f"{one}.yaml", *options).exit_code == 0
    again = stlm_kd("teacher", "merge", first, second, "--output", output)
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
    assert merged["teacher"] == "a, m merged"
    model_folder(tmp_path / "m", "llama", load_tokenizer("own"), seed=8)
    other = stlm_kd("teacher", "verify", second, *options)
    assert (other.exit_code, "another revision" in other.stderr) == (1, True)
    manifest = Path(first) / MANIFEST
    content = json.loads(manifest.read_text())
    content["source"]["model"] = str(tmp_path / "m")
    content["made_of"]["teacher"] = model_identity(str(tmp_path / "m"))
    del content["sha256"]
    manifest.write_text(json.dumps(sealed(content)))
    lied = stlm_kd("teacher", "verify", first, "--rows", "2", *options)
    assert (lied.exit_code, "more than rounding" in lied.stderr) == (1, True)
    shutil.rmtree(tmp_path / "m")
    gone = stlm_kd("teacher", "verify", second, *options)
    assert (gone.exit_code, f"its teacher is missing: {tmp_path}/m" in gone.stderr) == (5, True)


def test_a_disk_that_is_too_small_is_told_before_the_start(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    name = taught(place, "full", "[{name: a, model: same, cache: auto}]")
    result = stlm_kd("teacher", "cache", "-r", f"{name}.yaml", "--output-dir", str(tmp_path))
    assert result.exit_code == 5
    assert re.search(r"the cache of teacher a takes about \d\.\d MB, and 0\.0 MB are free", result.stderr)
    assert "cache of teacher a: about" in result.stderr
    assert not list(tmp_path.glob("stages/cache-*/shard*"))


@pytest.mark.parametrize("name", ["entropy", "state.1", "tail", "log_probs", "label_log_probs", "ids"])
def test_a_column_that_the_teacher_would_not_write_is_found(name: str) -> None:
    random = np.random.default_rng(0)
    made = {column: -random.random((8, 4)) for column in ("entropy", "state.1", "tail", "log_probs")}
    made |= {"label_log_probs": -random.random((8, 4)), "ids": random.integers(0, 30, (8, 4))}
    assert _compared(made, made).agrees
    other = {**made, name: made[name] + (np.arange(8) == 3)[:, None]}
    assert not _compared(other, made).agrees
    if name != "ids":
        for broken in (np.nan, np.inf):
            damaged = {**made, name: np.where(np.arange(8)[:, None] == 3, broken, made[name])}
            assert not _compared(damaged, made).agrees
            assert _compared(damaged, damaged).not_finite == 4


def test_what_both_rule_out_agrees_and_what_one_rules_out_does_not() -> None:
    logits = np.array([[0.5, -np.inf, -1.0]], np.float32)
    assert _compared({"logits": logits}, {"logits": logits}).agrees
    assert not _compared({"logits": logits}, {"logits": np.nan_to_num(logits, neginf=-9.0)}).agrees
    assert not _compared({"logits": logits + np.float32(np.nan)}, {"logits": logits}).agrees
