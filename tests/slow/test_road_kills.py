"""Kills, damaged checkpoints and full disks, through the command: all end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks.training.kill_and_resume import (
    BEGAN,
    KILLS_OF_A_RUN,
    Command,
    Moment,
    differences,
    environment,
    heard,
    killed_run,
    verdict,
)
from stlm_kd.artifacts.stage_store import Stages
from tests.support.nursery import forked, opened, program
from tests.support.road import ADAPT, stlm_kd
from tests.unit.training.test_checkpoint import files_of_at_most, flip_a_byte

LLAMA = (
    "{model_type: llama, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 1, "
    "num_attention_heads: 2, num_key_value_heads: 1, attention_dropout: 0.1}"
)
BERT = (
    "{model_type: bert, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}"
)
TRAIN = "effective_batch: 8, learning_rate: 5e-3, checkpoint_every: 3, log_every: 1"
TEXT = "data: {{train: {0}/train.txt, validation: {0}/valid.txt, context: 64}}"
TAUGHT = f"""
task: clm
student: {{tokenizer: {{train: bpe, size: 300}}, architecture: {LLAMA}}}
objectives: [{{loss: labels, weight: 0.5}}, {{loss: forward_kl, weight: 0.5}}]
train: {{steps: 20, validate_every: 4, keep: best, {TRAIN}}}
eval: [perplexity]
"""
MASKED = f"""
task: mlm
student: {{tokenizer: {{train: bpe, size: 300}}, architecture: {BERT}}}
objectives: [{{loss: labels}}]
train: {{steps: 30, validate_every: 4, keep: best, {TRAIN}}}
eval: [masked-loss]
tracking: []
"""


Begin = Callable[[str, Path], subprocess.Popen[str]]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """As in the processes that are started: sums in another order would not be bit-identical."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def world(folder: Path, road: Path, recipe: str) -> Path:
    """A folder with a recipe of the small world's text."""
    (folder / "recipe.yaml").write_text(recipe + TEXT.format(road) + "\n", encoding="utf-8")
    return folder


def checkpoints(output_dir: Path) -> list[Path]:
    return sorted(output_dir.glob("*/students/student/seed-1/checkpoints/step-*"))


def distil(place: Path, output_dir: Path, *options: str) -> tuple[int, str]:
    """Run the command in this process; returns its exit code and standard error."""
    words = ["distill", "-r", str(place / "recipe.yaml"), "--output-dir", str(output_dir)]
    result = stlm_kd(*words, *options)
    return result.exit_code, result.stderr


def test_up_to_three_kills_change_no_bit(road: Path, tmp_path: Path) -> None:
    teachers = f"teachers: [{{name: g, model: {road}/gpt2, adapt: {ADAPT}}}]\n"
    place = world(tmp_path, road, TAUGHT + teachers)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, said = distil(place, whole)
    assert code == 0, said
    marks = [("", BEGAN), *(line.mark for line in heard(said.splitlines()))]
    draw = random.Random(time.time_ns())
    # After a line of the first half (the teacher) there is more work than the delay: at least one kill falls.
    # A command that was killed late may end, when it is given again, before the next moment comes.
    first = Moment(draw.randrange(len(marks) // 2), draw.uniform(0, 0.2))
    later = [Moment(draw.randrange(first.line, len(marks)), draw.uniform(0, 0.2)) for _ in range(2)]
    attempts = killed_run(place, killed, marks, [first, *later])
    assert attempts[0].killed, (first, later)
    assert attempts[-1].code == 0, (first, later, attempts[-1].lines)
    assert verdict(whole, killed) == [], (first, later)
    compared = {path.name for path in killed.rglob("*") if path.is_file()}
    assert {"model.safetensors", "tokens-00000.bin", "metrics.jsonl", "results.json"} <= compared


KILLED = {
    "distill": "distill -r taught.yaml --output-dir OUT",
    "adapt-teacher": "adapt-teacher -r adapts.yaml --output-dir OUT",
    "cache": "teacher cache -r taught.yaml --output-dir OUT",
    "eval": "eval gpt2 qwen2 --suite perplexity --data valid.txt --output OUT/results.json",
    "merge": "teacher merge CACHES --output OUT/merged",
}


@pytest.fixture(scope="module")
def begin(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Begin]:
    """Begins one of these commands, as a process that is forked where PyTorch is imported."""
    folder = tmp_path_factory.mktemp("nursery")

    def begin(name: str, output_dir: Path) -> subprocess.Popen[str]:
        caches = " ".join(str(path) for path in sorted((folder / "caches").glob("stages/cache-*")))
        words = KILLED[name].replace("OUT", str(output_dir)).replace("CACHES", caches).split()
        output_dir.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*program(place), *words],
            cwd=road,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    with opened(folder) as place:
        _, said = begin("cache", folder / "caches").communicate(timeout=120)
        assert len([*(folder / "caches").glob("stages/cache-*")]) == 2, said
        yield begin


@pytest.mark.long
@pytest.mark.parametrize("name", KILLED)
def test_forty_kills_at_any_moment_change_no_bit(begin: Begin, tmp_path: Path, name: str) -> None:
    kills = int(os.environ.get("STLM_KD_TEST_KILLS", "40"))
    output_dir, whole = tmp_path / "runs", tmp_path / "whole"  # results name the folder, so it is the same
    began = time.monotonic()
    begin(name, output_dir).communicate(timeout=240)
    took = time.monotonic() - began
    output_dir.rename(whole)
    assert any(path.is_file() for path in whole.rglob("*"))
    draw = random.Random(time.time_ns())
    while kills > 0:
        moments = [draw.uniform(0, took) for _ in range(min(kills, KILLS_OF_A_RUN))]
        for moment in [*moments, 240]:
            process = begin(name, output_dir)
            try:
                _, said = process.communicate(timeout=moment)
                break
            except subprocess.TimeoutExpired:
                kills -= 1
                process.kill()
                process.communicate()
                while forked():
                    time.sleep(0.01)
        assert process.returncode == 0 or "merged: exists already" in said, (said, moments)
        assert verdict(whole, output_dir) == [], moments
        shutil.rmtree(output_dir)


@pytest.fixture(scope="module")
def masked(road: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked model's world: ``whole``, and ``killed`` after the 13th step."""
    place = world(tmp_path_factory.mktemp("masked"), road, MASKED)
    assert distil(place, place / "whole")[0] == 0
    killed = Command(place, place / "killed").attempt([("student seed 1", "step 13/30")], Moment(0, 0.0))
    assert killed.code == -9
    assert checkpoints(place / "killed")
    return place


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("name", "damage"),
    [("model.safetensors", flip_a_byte), ("optimizer.safetensors", flip_a_byte), ("state.json", cut)],
)
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_leads_to_the_same_end(
    masked: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    output_dir = tmp_path / "runs"
    shutil.copytree(masked / "killed", output_dir)
    before, newest = checkpoints(output_dir)[-2:]
    damage(newest / name)
    code, said = distil(masked, output_dir)
    assert code == 0, said
    (told,) = [line for line in said.splitlines() if "is damaged" in line]
    assert told.startswith(f"{newest.name} is damaged") and name in told
    assert f"resumed after step {int(before.name.removeprefix('step-'))}\n" in said
    assert differences(masked / "whole", output_dir) == []


def test_without_a_whole_checkpoint_it_says_so_and_never_anew_ends_the_same(
    masked: Path, tmp_path: Path
) -> None:
    output_dir = tmp_path / "runs"
    shutil.copytree(masked / "killed", output_dir)
    for folder in checkpoints(output_dir):
        cut(folder / "model.safetensors")
    code, said = distil(masked, output_dir)
    assert code == 1 and "Traceback" not in said
    assert "no checkpoint is whole" in said.splitlines()[-1]
    anew = stlm_kd(
        "distill", "-r", str(masked / "recipe.yaml"), "--output-dir", str(output_dir), "--resume", "never"
    )
    assert anew.exit_code == 0, anew.stderr
    assert differences(masked / "whole", output_dir) == []


def test_what_killed_processes_left_is_not_in_the_finished_run(masked: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "runs"
    shutil.copytree(masked / "killed", output_dir)
    (partial,) = (output_dir / "stages").glob("model-*.partial")
    store = next((output_dir / "stages" / "tokens").glob("tokens-*"))
    shutil.rmtree(store)
    left = [
        checkpoints(output_dir)[0].parent.parent / ".model.1.unfinished",
        partial / ".model.1.unfinished",
        partial.with_name(f".{partial.name}.1.unfinished"),
        store.with_name(f".{store.name}.0123abcd"),
    ]
    for folder in left:
        folder.mkdir()
        (folder / "half").write_text("")
    assert distil(masked, output_dir)[0] == 0
    assert verdict(masked / "whole", output_dir) == []


def test_a_stage_is_whole_before_its_checkpoints_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "half").write_text("")
        (folder / "report.json").write_text("")

    built: list[Path] = []
    stages = Stages(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("stlm_kd.artifacts.stage_store.shutil.rmtree", Mock(side_effect=KeyboardInterrupt))
        stages.make("model", {"a": 1}, build)
    folder = stages.make("model", {"a": 1}, build)
    assert len(built) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "stage.json"]


LIMITED = (
    "import resource, runpy, sys; size = int(sys.argv.pop(1)); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "runpy.run_module('stlm_kd', run_name='__main__', alter_sys=True)"
)


def distil_with_files_of_at_most(size: int, place: Path, output_dir: Path) -> tuple[int, str]:
    """The command in a process that cannot write longer files, as on a disk that fills up."""
    words = ["distill", "-r", "recipe.yaml", "--output-dir", str(output_dir)]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(size), *words],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


@pytest.mark.long
def test_wherever_the_disk_is_full_it_says_so_and_the_same_command_ends_the_same(
    road: Path, tmp_path: Path
) -> None:
    place = world(tmp_path, road, TAUGHT.replace("eval:", "tracking: []\neval:").replace(FORWARD_KL, ""))
    assert distil(place, tmp_path / "whole")[0] == 0
    output_dir = tmp_path / "runs"
    for size, what, *options in (
        (100, "runs/recipe-"),
        (8_000, "tokenizer-"),
        (40_000, "tokens-"),
        (150_000, ".rehearsal"),
        (150_000, "step-", "--no-rehearsal"),
    ):
        if what == "tokenizer-":
            code, said = distil_with_files_of_at_most(size, place, output_dir)
        else:
            with files_of_at_most(size):
                code, said = distil(place, output_dir, *options)
        assert code in (1, 5), said
        assert "Traceback" not in said
        last = said.splitlines()[-1]
        assert what in last and ("cannot be written" in last or "could not be written" in last), said
    assert distil(place, output_dir)[0] == 0
    assert differences(tmp_path / "whole", output_dir) == []


FORWARD_KL = ", {loss: forward_kl, weight: 0.5}"


@pytest.mark.long
def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint_to_go_on_from(
    masked: Path, tmp_path: Path
) -> None:
    words = ["distill", "-r", "recipe.yaml", "--output-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "stlm_kd", *words],
        cwd=masked,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not [
            folder
            for folder in checkpoints(tmp_path)
            if (folder / "checksums.json").exists() and not folder.name.endswith("-00000000")
        ]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, 4000))
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "written" in said.splitlines()[-1] and "space" in said.splitlines()[-1]
    code, again = distil(masked, tmp_path)
    assert code == 0, again
    assert "resumed after step" in again
    assert differences(masked / "whole", tmp_path) == []


def test_the_comparison_sees_one_bit_a_loss_a_score_and_a_file(masked: Path, tmp_path: Path) -> None:
    def nudged(path: Path) -> None:
        path.write_text(path.read_text().replace("1", "2"))

    for name, change in (
        ("model.safetensors", flip_a_byte),
        ("tokens-00000.bin", flip_a_byte),
        ("metrics.jsonl", nudged),
        ("results.json", nudged),
        ("config.json", Path.unlink),
    ):
        other = tmp_path / name
        shutil.copytree(masked / "whole", other)
        path = next(path for path in other.rglob(name))
        path.chmod(0o644)
        change(path)
        (found,) = differences(masked / "whole", other)
        assert found.startswith(str(path.relative_to(other)))
    assert json.loads(next((masked / "whole").rglob("results.json")).read_text())["rows"]
