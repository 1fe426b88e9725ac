"""What manifests say of files: seals, names, what is in a file's place, and who is checked by what."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from stlm_kd.artifacts import atomic
from stlm_kd.artifacts.atomic import parse_json, read_json, write_json
from stlm_kd.artifacts.hashing import recorded_files, sealed
from stlm_kd.artifacts.integrity import refuse_changed
from stlm_kd.artifacts.record import new_record, read_record, write_record
from stlm_kd.artifacts.run_dir import RECIPE, RECORD, RunFolder, open_run
from stlm_kd.artifacts.stage_store import STAGE, StageRecord, Stages, copy_folder
from stlm_kd.artifacts.uses import begin_uses
from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.notes import note
from tests.support.damage import put
from tests.unit.artifacts.test_damage import tokens

KEY = {"seed": 1}
NAMES = (
    "a\0b",
    "x" * 300,
    "x/" * 3000 + "x",
    "\ud800",
    "/etc/passwd",
    "../x",
    "a/../x",
    "a\\b",
    "",
    "a//b",
    "./a",
)


def build(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_text("weights")
    (folder / "report.json").write_text("{}")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is done, with a student that it copied from a stage."""
    path = tmp_path / "run"
    path.mkdir()
    (path / RECIPE).write_text("")
    begin_uses(path, created=True)
    record = new_record("x", "abc", "stlm-kd")
    write_record(path / RECORD, record)
    stages = Stages(tmp_path / "stages", run=path)
    copy_folder(stages.make("model", KEY, build), student(path))
    RunFolder(path, record).finish("done")
    note.cache_clear()
    return path


def student(run: Path) -> Path:
    return run / "students" / "student" / "seed-1"


def without_seal(path: Path) -> None:
    content = read_json(path)
    write_json(path, {name: value for name, value in content.items() if name not in ("sha256", "sealed")})


def test_each_field_of_a_manifest_is_sealed_and_earlier_versions_had_no_seal(run: Path) -> None:
    stage = student(run)
    for path, read in (
        (stage / STAGE, lambda: StageRecord.of(stage)),
        (run / RECORD, lambda: _or_none(lambda: read_record(run / RECORD))),
    ):
        whole, content = read(), read_json(path)
        assert whole is not None
        for name in content:
            for changed in (
                {**content, name: "other"},
                {key: content[key] for key in content if key != name},
            ):
                write_json(path, changed)
                assert read() is None, name
        write_json(path, content)
        without_seal(path)
        assert read() == whole


def _or_none(read: Callable[[], object]) -> object:
    try:
        return read()
    except CheckpointError as error:
        assert "move the folder away" in str(error)
        return None


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_not_of_files_in_the_folder_are_damage(run: Path, name: str) -> None:
    with pytest.raises(ValueError):
        recorded_files({name: "0" * 64})
    for path in (student(run) / STAGE, run / RECORD):
        content = json.loads(path.read_text())
        del content["sha256"], content["sealed"]
        content["files"][name] = "0" * 64
        path.write_text(json.dumps(sealed(content)))
    assert StageRecord.of(student(run)) is None
    with pytest.raises(CheckpointError, match="damaged"):
        read_record(run / RECORD)


def test_a_stage_whose_record_lacks_its_result_is_made_again(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = Stages(run.parent / "stages")
    stage = stages.path("model", KEY)
    content = read_json(stage / STAGE)
    del content["sha256"], content["files"]["report.json"]
    write_json(stage / STAGE, sealed(content))
    (stage / "report.json").unlink()
    assert stages.make("model", KEY, build) == stage
    assert (stage / "report.json").is_file() and "made again" in caplog.text


def test_a_student_without_its_record_is_checked_by_that_of_the_run(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (student(run) / STAGE).unlink()
    refuse_changed(student(run) / "model")
    assert not caplog.messages
    weights = student(run) / "model" / "model.safetensors"
    weights.unlink()
    weights.write_text("others")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: changed since this run was completed"):
        refuse_changed(student(run) / "model")
    write_json(run / RECORD, asdict(new_record("x", "abc", "stlm-kd")))  # as an earlier version would
    refuse_changed(student(run) / "model")
    assert "model: not checked: " in caplog.text


@pytest.mark.parametrize("kind", ["gone", "zeros", "folder", "unfinished"])
def test_a_student_without_a_record_is_put_aside_with_a_note_unless_it_is_unfinished(
    run: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    record = student(run) / STAGE
    record.unlink()
    if kind == "zeros":
        record.write_bytes(bytes(100))
    elif kind == "folder":
        record.mkdir()
    elif kind == "unfinished":
        (student(run) / "checkpoints").mkdir()
    assert not Stages(run.parent / "stages").holds(student(run), "model", KEY)
    is_aside = (student(run).parent / ".seed-1.damaged").is_dir()
    assert is_aside == ("made again" in caplog.text) == (kind != "unfinished")


@pytest.mark.parametrize(
    ("kind", "what"), [("folder", "a folder"), ("pipe", "a pipe"), ("socket", "a socket"), ("link", "a link")]
)
def test_what_is_in_the_place_of_a_file_is_said_and_how_to_go_on(run: Path, kind: str, what: str) -> None:
    put(run / RECORD, kind)
    for read in (lambda: open_run(run), lambda: refuse_changed(run / RECIPE)):
        with pytest.raises(CheckpointError, match=f"run.json: in the way is {what}.*; move it away"):
            read()
    put(run / RECIPE, kind)
    fault = f"recipe.yaml: in the way is {what}.*; move it away"
    with pytest.raises(MissingResourceError, match=fault), atomic.storage_as_error(run):
        if kind == "folder":
            write_json(run / RECIPE, {})
        else:
            (run / RECIPE / "below").mkdir()


def test_storage_that_does_not_answer_is_no_damage_of_a_token_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens(tmp_path)
    (store,) = (tmp_path / "kept").glob("tokens-*")
    before = [path.lstat().st_ino for path in sorted(store.iterdir())]
    open_ = os.open
    for name in ("manifest.json", "bytes.bin"):

        def refused(path: object, flags: int, *more: int, name: str = name) -> int:
            if str(path).endswith(name):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return open_(str(path), flags, *more)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refused)
            with pytest.raises(MissingResourceError, match=f"{name}: cannot be read"):
                tokens(tmp_path)
    assert before == [path.lstat().st_ino for path in sorted(store.iterdir())]


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, "", "{", b"\xff"])
def test_what_is_no_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_file_of_any_size_is_refused_before_it_is_read(run: Path) -> None:
    with (run / RECORD).open("ab") as file:
        file.truncate(atomic.LARGEST + 1)  # no byte is written
    with pytest.raises(CheckpointError, match="more than 1,073,741,824 bytes"):
        open_run(run)
