"""Teachers that are larger than the memory are refused before their weights are read, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig
from typer.testing import CliRunner

from stlm_kd.cli.main import app
from stlm_kd.pipeline.checks import room as module
from stlm_kd.pipeline.checks import validate
from stlm_kd.pipeline.checks.room import Room
from stlm_kd.teachers.footprint import PlacedTeacher
from tests.support.pico import pico_model
from tests.support.road import stlm_kd
from tests.support.tokenizer_kinds import byte_level

GIB = 1 << 30


def placed(placement: str = "replicate", divides: bool = True) -> PlacedTeacher:
    sizes = {"whole": 100 * GIB, "outer": 4 * GIB, "head": 2 * GIB, "block": 1 * GIB, "unit": 2 * GIB}
    return PlacedTeacher("t", placement, divides=divides, **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("room", "fitting"),
    [
        (Room(80 * GIB, 500 * GIB), {"offload", "cpu"}),
        (Room(80 * GIB, 500 * GIB, processes=2, local=2), {"shard", "offload", "cpu"}),
        (Room(51 * GIB, 500 * GIB, processes=2, local=2), {"offload", "cpu"}),  # 50 GiB and a unit of 2
        (Room(80 * GIB, 64 * GIB, processes=2, local=2), {"shard"}),
        (Room(101 * GIB, 8 * GIB), {"replicate", "shard"}),
        (Room(4 * GIB, 500 * GIB), {"cpu"}),
        (Room(None, 101 * GIB), {"replicate", "shard", "offload", "cpu"}),
        (Room(None, 64 * GIB), set()),
        (Room(None, 64 * GIB, processes=2, local=2), set()),  # both parts are on one node
        (Room(None, 64 * GIB, processes=2, local=1), {"shard"}),
    ],
)
def test_what_fits_is_as_by_hand(room: Room, fitting: set[str]) -> None:
    found = {one for one in ("replicate", "shard", "offload", "cpu") if room.lacks(placed(), one) is None}  # type: ignore[arg-type]
    assert found == fitting


def test_what_would_fit_is_named() -> None:
    assert [*Room(12 * GIB, 500 * GIB).cures(placed())] == [
        "placement: offload",
        "placement: cpu",
        "placement: shard over at least 10 processes",
    ]
    assert [*Room(None, 64 * GIB).cures(placed())] == ["placement: shard over at least 2 nodes"]
    assert [*Room(None, 64 * GIB).cures(placed(divides=False))] == []


def test_limits_of_control_groups_are_those_of_all_above(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("4096\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "memory" / "c").mkdir(parents=True)
    (tmp_path / "memory" / "c" / "memory.limit_in_bytes").write_text("8192\n")
    (tmp_path / "groups").write_text("5:memory:/c\n1:cpu:/elsewhere\n0::/a/b\n")
    assert sorted(module._group_limits(tmp_path / "groups", tmp_path)) == [4096, 8192]


def give(monkeypatch: pytest.MonkeyPatch, memory: float) -> None:
    """A machine without accelerators, with so many bytes of memory."""
    for user in (module, validate):
        monkeypatch.setattr(user, "room_here", lambda: Room(None, memory))


def test_a_huge_teacher_is_refused_from_its_configuration_and_a_small_one_by_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level()
    sizes = {"hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 500}
    config = LlamaConfig(num_attention_heads=64, vocab_size=len(tokenizer), **sizes)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "huge")  # no weights
    pico_model("llama", vocabulary=len(tokenizer)).save_pretrained(tmp_path / "small")
    for name in ("huge", "small"):
        tokenizer.save_pretrained(tmp_path / name)

    def run(name: str) -> str:
        change = [f"teachers=[{{name: t, model: {tmp_path / name}}}]", f"student.tokenizer={tmp_path / name}"]
        options = [*change, "--output-dir", str(tmp_path / "runs")]
        done = CliRunner().invoke(app, ["distill", "-r", "sample-two-teachers", *options])
        assert done.exit_code == 3
        return done.stderr

    found = "teachers[0] (t).placement: replicate found, which puts "
    give(monkeypatch, 1000 * GIB)
    assert f"{found}8,0" in run("huge")
    give(monkeypatch, 1000)
    assert found in run("small")


def commands(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Distil from two teachers, and from a cached one; adapt one of two teachers."""
    runs = ["--output-dir", str(folder), "--no-rehearsal"]
    distill = ["distill", "-r", "taught.yaml", "train.steps=1", *runs]
    adapt = ["adapt-teacher", "-r", "adapts.yaml", "g", "eval=[]", "teachers.0.adapt.tokens=600", *runs]
    return distill, [*distill, "teachers=[{name: a, model: same, cache: auto}]"], adapt


def refused(*words: str) -> None:
    """A run is refused for its teachers' size, and its plan with the same message and exit code."""
    planned, ran = stlm_kd(*words, "--dry-run"), stlm_kd(*words)
    assert (planned.exit_code, planned.stderr) == (ran.exit_code, ran.stderr)
    assert ran.exit_code == 3 and "GiB into the memory of this machine" in ran.stderr


def test_a_dry_run_refuses_what_a_run_refuses_and_makes_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, 1000)
    made = ["student.tokenizer={train: bpe, size: 300}"]  # of a stage that is not there
    made += [f"teachers.{index}.adapt={{tokens: 4k}}" for index in (0, 1)]
    distill, cached, adapt = commands(tmp_path)
    assert stlm_kd(*distill, *made, "--dry-run").exit_code == 3
    assert not [*tmp_path.iterdir()]
    for words in (distill, cached, adapt):
        refused(*words)
    give(monkeypatch, GIB)
    planned = stlm_kd(*adapt, "--dry-run")
    assert planned.exit_code == 0 and "student from" not in planned.stdout
    planned = stlm_kd(*distill, "--dry-run")
    assert planned.exit_code == 0 and "student from" in planned.stdout


@pytest.mark.long
def test_teachers_that_are_not_loaded_need_no_room_in_runs_and_plans(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a finished run, and where teachers are adapted or their outputs cached."""
    distill, cached, adapt = commands(tmp_path)
    give(monkeypatch, GIB)
    for words in (distill, cached, adapt):
        assert stlm_kd(*words).exit_code == 0
    give(monkeypatch, 1000)
    for words in (distill, cached, adapt, [*cached, "train.learning_rate=1e-3"]):
        planned = stlm_kd(*words, "--dry-run")
        assert planned.exit_code == 0, planned.stderr
        assert stlm_kd(*words).exit_code == 0
    refused(*(word if word != "g" else "q" for word in adapt))  # only g is adapted
