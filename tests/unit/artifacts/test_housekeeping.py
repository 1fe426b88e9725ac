"""Stages are named by what they are to runs, and only those that no run uses are deleted."""

from __future__ import annotations

import os
import shutil
import time
from io import FileIO
from pathlib import Path

import pytest
from filelock import FileLock

from stlm_kd.artifacts import housekeeping
from stlm_kd.artifacts.atomic import write_json
from stlm_kd.artifacts.housekeeping import clean_stages, list_stages
from stlm_kd.artifacts.run_dir import LOCK, RECIPE, RECORD
from stlm_kd.artifacts.stage_store import Stages, copy_folder
from stlm_kd.artifacts.uses import USES, add_use, begin_uses, complete_uses, known_uses, uses_of
from stlm_kd.errors import CheckpointError, MissingResourceError


def begun(output_dir: Path, name: str) -> Path:
    run = output_dir / name
    run.mkdir(parents=True)
    write_json(run / RECORD, {})
    begin_uses(run, created=True)
    return run


def made(run: Path, seed: int, what: str, kind: str = "model") -> Path:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(bytes(1000 * seed))
        (folder / "report.json").write_text("{}")

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
    os.utime(partial, (time.time() - 8 * 86400,) * 2)
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


def test_what_is_unfinished_is_kept_for_a_week_after_its_last_change(two: tuple[Path, Path]) -> None:
    output_dir = two[0].parent
    partial = output_dir / "stages" / f"fine-tuned-{'0' * 12}.partial"
    (partial / "checkpoints" / "step-5").mkdir(parents=True)
    state = partial / "checkpoints" / "step-5" / "state.json"
    state.write_text("{}")

    def aged(days: float) -> float | None:
        for path in (state, *state.parents[:3]):
            os.utime(path, (time.time() - (days if path == state else 30) * 86400,) * 2)
        return next(stage.age_days for stage in list_stages(output_dir) if stage.path == partial)

    for days in (-1, 0, 6.9):
        assert aged(days) == pytest.approx(days, abs=0.01)
        assert clean_stages(output_dir, dry_run=True) == clean_stages(output_dir) == []
    assert aged(7.1) == pytest.approx(7.1, abs=0.01)
    assert [stage.path for stage in clean_stages(output_dir)] == [partial]
    assert {stage.age_days for stage in list_stages(output_dir)} == {None}


def test_damaged_students_that_were_put_aside_in_a_run_are_listed_and_deleted(two: tuple[Path, Path]) -> None:
    a, output_dir = two[0], two[0].parent
    stages, student = Stages(output_dir / "stages", run=a), a / "students" / "student" / "seed-1"
    shared = made(a, 2, "student seed 1")
    for content in ("1", "2"):
        copy_folder(shared, student)
        (student / "model.safetensors").unlink()
        (student / "model.safetensors").write_text(content)
        assert not stages.holds(student, "model", {"seed": 2})
    (student.parent / ".seed-3.damaged").mkdir()
    copy_folder(shared, student)
    aside = [f".seed-{name}" for name in ("1.damaged", "1.damaged.2", "3.damaged")]
    found = [stage for stage in list_stages(output_dir) if stage.path.parent == student.parent]
    assert sorted(stage.path.name for stage in found) == aside
    assert {(stage.state, stage.runs) for stage in found} == {("put aside", ())}
    assert sorted(stage.what[0] for stage in found) == ["student seed 1", "student seed 1", "student seed-3"]
    with FileLock(a / LOCK):
        assert clean_stages(output_dir) == []
    assert sorted(stage.path.name for stage in clean_stages(output_dir)) == aside
    assert [path.name for path in student.parent.iterdir()] == ["seed-1"]
    assert stages.holds(student, "model", {"seed": 2}) and shared.is_dir()


@pytest.mark.parametrize("asked", [1, 2])
def test_a_stage_stays_in_its_place_if_a_run_cannot_be_asked(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    a, b = two
    (own,) = (stage.path for stage in list_stages(a.parent) if stage.runs == ("b",))
    shutil.rmtree(b)
    seen: list[bool] = []

    def uses(run: Path) -> dict[str, tuple[str, ...]]:
        seen.append(own.exists())
        if len(seen) == 2 + asked:  # after the check of all, and the listing
            raise CheckpointError("the run was damaged meanwhile")
        return {}

    monkeypatch.setattr(housekeeping, "_uses", uses)
    monkeypatch.setattr(housekeeping, "_folders", lambda _: [own])
    with pytest.raises(CheckpointError, match="damaged meanwhile"):
        clean_stages(a.parent)
    assert own.is_dir()
    assert seen == [True, True, True, False][: 2 + asked], "asked before the rename, and again after it"


def test_a_stage_that_cannot_be_deleted_is_not_called_deleted(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = two
    shutil.rmtree(b)
    monkeypatch.setattr(housekeeping, "remove", lambda path: None)
    with pytest.raises(MissingResourceError, match="cannot be deleted wholly"):
        clean_stages(a.parent)


@pytest.mark.parametrize("damage", ["gone", "cut", "a bit"])
def test_a_list_that_is_begun_anew_stops_a_cleanup_until_the_run_is_done(
    two: tuple[Path, Path], damage: str
) -> None:
    a, b = two
    log, before = b / USES, uses_of(b)
    content = bytearray(log.read_bytes())
    last = content.rindex(b"model-")
    if damage == "gone":
        log.unlink()
    else:
        content[last] ^= 1
        log.write_bytes(content if damage == "a bit" else content[:last])
    for _ in range(2):
        begin_uses(b)
        with pytest.raises(CheckpointError, match="lost or damaged, and the run has not been done since"):
            clean_stages(a.parent)
    assert len(list_stages(a.parent)) == 3
    kept = {} if damage == "gone" else dict([*before.items()][:1])
    assert known_uses(b) == kept, "the lines that are whole"
    for stage, (what,) in before.items():
        add_use(b, stage, what)
    complete_uses(b)
    assert uses_of(b) == before
    assert clean_stages(a.parent) == []


def test_a_line_that_is_cut_when_it_is_written_is_an_error_and_damages_no_other(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before, real = two[0], uses_of(two[0]), Path.open

    def opened(path: Path, *args: object, **options: object) -> object:
        file = real(path, *args, **options)
        file.write = lambda line: FileIO.write(file, line[:20])  # as a full disk does
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        with pytest.raises(OSError, match="No space left"):
            add_use(run, "model-x", "student seed 9")
    add_use(run, "model-y", "student seed 8")
    assert known_uses(run) == {**before, "model-y": ("student seed 8",)}
    with pytest.raises(CheckpointError, match="damaged"):
        uses_of(run)
    complete_uses(run)
    with pytest.raises(CheckpointError, match="damaged"):
        uses_of(run)
