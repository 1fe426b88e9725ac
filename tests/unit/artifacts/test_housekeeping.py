"""Stages are named by what they are to runs, and only those that no run uses are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.housekeeping import clean_stages, list_stages
from stlm_kd.artifacts.run_dir import RECIPE, RECORD
from stlm_kd.artifacts.stage_store import Stages
from stlm_kd.artifacts.uses import USES, begin_uses, uses_of
from stlm_kd.errors import CheckpointError


def begun(output_dir: Path, name: str) -> Path:
    run = output_dir / name
    run.mkdir(parents=True)
    write_json(run / RECORD, {})
    begin_uses(run)
    return run


def made(run: Path, seed: int, what: str, kind: str = "model") -> Path:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(1000 * seed))

    return Stages(run.parent / "stages", run=run).make(kind, {"seed": seed}, build, what=what)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that share one stage; each has one of its own."""
    a, b = (begun(tmp_path, name) for name in "ab")
    made(a, 1, "teacher qwen, adapted", "adapted")
    made(b, 1, "teacher q, adapted", "adapted")
    made(a, 2, "student seed 1")
    made(b, 3, "student seed 1")
    return a, b


def test_stages_say_what_they_are_who_uses_them_and_how_large_they_are(two: tuple[Path, Path]) -> None:
    found = list_stages(two[0].parent)
    assert [(stage.what, stage.runs, stage.bytes // 1000) for stage in found] == [
        (("student seed 1",), ("b",), 3),
        (("student seed 1",), ("a",), 2),
        (("teacher qwen, adapted", "teacher q, adapted"), ("a", "b"), 1),
    ]
    assert {stage.state for stage in found} == {"finished"}


def test_what_a_deleted_run_alone_used_is_deleted(two: tuple[Path, Path]) -> None:
    a, b = two
    assert clean_stages(a.parent) == []
    shutil.rmtree(b)
    would = clean_stages(a.parent, dry_run=True)
    assert [(stage.what, stage.runs) for stage in would] == [(("student seed 1",), ())]
    assert would[0].path.is_dir()
    assert clean_stages(a.parent) == would
    assert not would[0].path.exists()
    assert len(list_stages(a.parent)) == 2
    assert sorted(path.name for path in a.parent.iterdir()) == ["a", "stages"]


def test_what_is_put_aside_is_deleted_and_what_is_built_or_named_is_kept(two: tuple[Path, Path]) -> None:
    a, b = two
    output_dir, own = a.parent, made(b, 3, "student seed 1")
    (own / "model.safetensors").write_bytes(b"1")
    made(b, 3, "student seed 1")
    shutil.rmtree(b)
    (a / RECIPE).write_text(f"teachers: [{{name: a, model: runs/stages/{own.name}/model}}]")
    partial = output_dir / "stages" / f"eval-{'0' * 12}.partial"
    partial.mkdir()
    (output_dir / "stages" / "mine").mkdir()
    with FileLock(output_dir / "stages" / ".locks" / partial.stem):
        assert [stage.state for stage in clean_stages(output_dir)] == ["put aside"]
    assert own.is_dir() and partial.is_dir()
    assert [stage.state for stage in clean_stages(output_dir)] == ["unfinished"]
    assert own.is_dir() and (output_dir / "stages" / "mine").is_dir() and not partial.exists()


def test_a_stage_that_a_run_begins_to_use_meanwhile_is_kept(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    shutil.rmtree(b)
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if not path.name.startswith("."):
            Stages(a.parent / "stages", run=a).use(path, "just found")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    assert clean_stages(a.parent) == []
    assert len(list_stages(a.parent)) == 3


@pytest.mark.parametrize("content", [None, b"x\n", b"0000000g"])
def test_nothing_is_deleted_while_a_run_does_not_say_what_it_uses(
    two: tuple[Path, Path], content: bytes | None
) -> None:
    (two[1] / USES).unlink()
    if content is not None:
        (two[1] / USES).write_bytes(content)
    with pytest.raises(CheckpointError, match="which stages the run uses cannot be read"):
        clean_stages(two[0].parent)
    assert len(list_stages(two[0].parent)) == 3
    begin_uses(two[1])
    assert uses_of(two[1]) == {}
