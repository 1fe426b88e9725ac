"""Whole commands with teachers that are read from caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stlm_kd.errors import CheckpointError
from stlm_kd.models.load import load_language_model
from stlm_kd.pipeline.builders import models
from stlm_kd.teachers.cache.format import read_manifest
from tests.support import classes
from tests.support.road import LLAMA, ROBERTA, distilled, done, stlm_kd, student, weights

TRAIN = (
    "train: {steps: 4, effective_batch: 8, micro_batch: 4, learning_rate: 5e-3, log_every: 1}\ntracking: []"
)
DATA = "data: {train: train.txt, context: 64}"
KL = "[{loss: labels, weight: 0.5}, {loss: forward_kl, temperature: 2}]"


def taught(folder: Path, name: str, teachers: str, objectives: str = KL, *, head: str = "") -> str:
    head = head or f"task: clm\nstudent: {{tokenizer: own, architecture: {LLAMA}}}\n{DATA}"
    text = f"{head}\nteachers: {teachers}\nobjectives: {objectives}\n{TRAIN}\n"
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return name


def losses(run: Path, term: str = "forward_kl", *, seed: int = 1) -> list[float]:
    lines = (student(run, seed=seed) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [entry["losses"][term] for entry in found if entry["kind"] == "step"]


def test_a_student_of_caches_learns_what_the_online_one_learns(place: Path, tmp_path: Path) -> None:
    """Of a head as large as the vocabulary only half precision is missing."""
    pair = "[{{name: a, model: same{0}}}, {{name: b, model: padded{1}}}]"
    terms = "[{loss: forward_kl, teacher: a}, {loss: forward_kl, teacher: b, temperature: 2, on: attended}]"
    online = distilled(taught(place, "online", pair.format("", ""), terms), output_dir=tmp_path)
    caches = pair.format(", cache: auto", ", cache: {top: 400}")
    cached = distilled(taught(place, "cached", caches, terms), output_dir=tmp_path)
    assert losses(cached, "forward_kl@b")[0] == pytest.approx(losses(online, "forward_kl@b")[0], rel=1e-3)
    sampled, expected = losses(cached, "forward_kl@a"), losses(online, "forward_kl@a")
    assert sampled != pytest.approx(expected, rel=1e-5)
    assert sampled == pytest.approx(expected, rel=0.05)


def test_a_teacher_whose_cache_is_there_is_not_loaded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = taught(place, "again", "[{name: a, model: same, cache: auto}]")
    distilled(name, output_dir=tmp_path)
    loaded = []

    def noting(model: str, *given: object, **named: object) -> object:
        loaded.append(model)
        return load_language_model(model, *given, **named)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(models, "load_language_model", noting)
    run = distilled(name, "seeds=[2]", output_dir=tmp_path)
    assert loaded == []
    assert len(list(tmp_path.glob("stages/cache-*"))) == 1
    assert losses(run, seed=2)


def test_a_cache_that_is_named_needs_no_teacher_and_is_compared(place: Path, tmp_path: Path) -> None:
    shutil.copytree("same", tmp_path / "gone")
    made = distilled(
        taught(place, "made", f"[{{name: a, model: {tmp_path}/gone, cache: auto}}]"), output_dir=tmp_path
    )
    (folder,) = tmp_path.glob("stages/cache-*")
    moved = folder.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "gone")
    name = taught(place, "named", f"[{{name: a, cache: {moved}}}]")
    named = distilled(name, output_dir=tmp_path / "other")
    assert weights(named) == weights(made)
    words = ("distill", "-r", f"{name}.yaml", "--output-dir", str(tmp_path / "other"))
    for change, message in {
        "objectives[1].temperature=1": "the temperature differs: 2 in the cache, 1 in the recipe",
        "data.context=32": "data.context differs: 64 in the cache, 32 in the recipe",
        "objectives[1].on=attended": "the positions that objectives count differ: labels in the cache",
        "data.train=valid.txt": "the training data and its share differs",
        "teachers[0].model=padded": "the teacher differs",
    }.items():
        refused = stlm_kd(*words, change)
        assert refused.exit_code == 3
        assert f"teachers[0] (a).cache: {moved} is not a cache for this recipe: {message}" in refused.stderr
    misspelt = stlm_kd(*words, "teachers[0].cache=autto")
    assert misspelt.exit_code == 5
    assert "teachers[0] (a): cache: autto is not auto, and no such folder exists" in misspelt.stderr
    assert "(did you mean auto?)" in misspelt.stderr
    shard = moved / "shard-00000.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused = stlm_kd(*words, "seeds=[3]")
    assert refused.exit_code == CheckpointError.exit_code
    assert f"{shard}: changed since the cache was completed" in refused.stderr


def test_losses_that_a_cache_serves_only_nearly_are_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = "[{loss: forward_kl}, {loss: reverse_kl}]"
    result = stlm_kd(
        "distill", "-r", f"{taught(place, 'told', '[{name: a, model: same, cache: auto}]', both)}.yaml",
        "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert result.stderr.count("forward_kl is unbiased with it") == 1
    assert (
        result.stderr.count("warning: teacher a is read from its cache, with which reverse_kl is biased") == 1
    )


@pytest.mark.long
def test_a_masked_students_teacher_is_cached_under_some_masks_of_each_row(
    place: Path, tmp_path: Path
) -> None:
    head = f"task: mlm\nstudent: {{tokenizer: own-masked, architecture: {ROBERTA}}}\n{DATA}"
    terms = "[{loss: forward_kl, on: attended}, {loss: cosine, sites: last, projection: linear}]"
    teachers = "[{{name: d, model: distilbert, cache: {{top: 400, variants: 2{}}}}}]"
    kept = taught(place, "kept-masked", teachers.format(", states: [last]"), terms, head=head)
    run = distilled(kept, output_dir=tmp_path)
    (folder,) = tmp_path.glob("stages/cache-*")
    manifest = read_manifest(folder)
    assert manifest.items == 2 * manifest.rows
    assert manifest.layout.states == {"last": 16}
    assert min(losses(run)) > 0
    refused = stlm_kd(
        "distill", "-r", f"{taught(place, 'stateless', teachers.format(''), terms, head=head)}.yaml"
    )
    assert refused.exit_code == 3
    assert "cosine compares hidden states, but the cache of d stores none" in refused.stderr


def test_a_classifiers_logits_are_cached_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    classes.build(tmp_path)
    online = distilled("other-reader", output_dir=tmp_path / "runs")
    cached = distilled("other-reader", "teachers[0].cache=auto", output_dir=tmp_path / "runs")
    assert losses(cached) == pytest.approx(losses(online), rel=1e-5)
    (folder,) = tmp_path.glob("runs/stages/cache-*")
    assert read_manifest(folder).layout.logits


def test_a_cache_of_one_seeds_examples_is_refused_for_another_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    classes.build(tmp_path)
    words = ("-r", "other-reader.yaml", "data.fraction=0.5")
    (made,) = done("teacher", "cache", *words, "seeds=[1]")
    refused = stlm_kd("distill", *words, "seeds=[1, 2]", f"teachers[0].cache={made['folder']}")
    assert refused.exit_code == 3
    assert "the seed that draws the examples differs: 1 in the cache, 2 in the recipe" in refused.stderr
    assert not list(tmp_path.glob("runs/stages/model-*"))
