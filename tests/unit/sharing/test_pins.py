"""Records of pins, copies of data sets, and what a damaged file is told."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from stlm_kd.errors import CheckpointError, DataError, MissingResourceError
from stlm_kd.sharing import blobs, pins
from stlm_kd.sharing.hub import RepoFile, RepoInfo
from stlm_kd.sharing.names import HubName

COMMIT, OTHER = "a" * 40, "b" * 40
INFO = RepoInfo("model", "org/name", "v1", COMMIT, "mit", True, {"a.json": RepoFile(2, "git", "c" * 40)})


def test_pins_survive_json() -> None:
    text = pins.Pins([INFO, RepoInfo("dataset", "org/name", None, OTHER)]).as_json()
    found = pins.from_json(text, "x")
    assert found.resolve(HubName("model", "org/name", "v1")) == INFO
    assert found.resolve(HubName("model", "org/name", COMMIT)) == INFO, "as pin() names it"
    assert {found.resolve(HubName("dataset", "org/name", main)).commit for main in (None, "main")} == {OTHER}
    assert [one.kind for one in found.records()] == ["dataset", "model"]
    assert found.pin("org/name@v1") == f"org/name@{COMMIT}"
    assert found.pin("./org/name") == "./org/name"


@pytest.mark.parametrize(
    "text", ["", "{}", '[{"kind": "model"}]', '[{"kind": "x", "id": "a/b", "commit": 1}]']
)
def test_a_damaged_record_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"run.json: not a record of pins \("):
        pins.from_json(text, "run.json")


def test_pins_of_a_command_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = pins.current()
    with pins.using(pins.Pins([INFO])) as here:
        assert pins.current() is here
        variables = pins.variables(here, tmp_path / "pins.json")
    assert pins.current() is before
    monkeypatch.setattr(pins, "_active", None)
    monkeypatch.setenv(*variables.popitem())
    assert pins.current().pin("org/name@v1") == f"org/name@{COMMIT}"
    monkeypatch.setattr(pins, "_active", None)
    (tmp_path / "pins.json").unlink()
    with pytest.raises(MissingResourceError, match=r"STLM_KD_PINS: .* cannot be read"):
        pins.current()


def test_a_copy_of_a_data_set_says_of_which_commit_it_is_one(tmp_path: Path) -> None:
    assert pins.mirror_of(tmp_path) is None
    file = tmp_path / pins.MIRROR
    file.write_text(json.dumps({"id": "nyu-mll/glue", "commit": COMMIT}))
    assert pins.mirror_of(tmp_path) == HubName("dataset", "nyu-mll/glue", COMMIT)
    for text in (
        "",
        "{}",
        '{"id": "nyu-mll/glue", "commit": "main"}',
        json.dumps({"id": "../x", "commit": COMMIT}),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=r"expected .*org/name.*commit"):
            pins.mirror_of(tmp_path)


def test_files_are_compared_with_the_hash_that_names_them(tmp_path: Path) -> None:
    sha256 = hashlib.sha256(b"1").hexdigest()
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / sha256).write_bytes(b"1")
    (link := tmp_path / "model.safetensors").symlink_to(f"blobs/{sha256}")
    (copy := tmp_path / "copy").write_bytes(b"2")
    name = HubName("model", "org/name", COMMIT)
    blobs.check(name, "model.safetensors", link)
    blobs.check(name, "copy", copy)  # nothing says what it should be
    blobs.check(name, "model.safetensors", link, RepoFile(1, "sha256", sha256))
    with pytest.raises(
        MissingResourceError, match=f"{sha256} found, {'0' * 64} expected; delete {tmp_path}/blobs"
    ):
        blobs.check(name, "model.safetensors", link, RepoFile(1, "sha256", "0" * 64))
    (tmp_path / "blobs" / sha256).write_bytes(b"2")
    with pytest.raises(MissingResourceError, match=f"{sha256} expected; delete .*fetches it"):
        blobs.check(name, "model.safetensors", link)
