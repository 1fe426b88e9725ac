"""Records of pins, and the message for a damaged one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from stlm_kd.errors import CheckpointError, MissingResourceError
from stlm_kd.sharing import blobs, pins
from stlm_kd.sharing.hub import RepoFile, RepoInfo, remember_fetched
from stlm_kd.sharing.names import HubName

COMMIT, OTHER = "a" * 40, "b" * 40
INFO = RepoInfo("model", "org/name", "v1", COMMIT, "mit", True, {"a.json": RepoFile(2, "git", "c" * 40)})


def test_pins_survive_json() -> None:
    text = pins.Pins([INFO, RepoInfo("dataset", "org/name", None, OTHER)]).as_json()
    found = pins.from_json(text, "x")
    assert found.resolve(HubName("model", "org/name", "v1")) == INFO
    assert found.resolve(HubName("model", "org/name", COMMIT)) == INFO, "as .pinned names it"
    assert {found.resolve(HubName("dataset", "org/name", main)).commit for main in (None, "main")} == {OTHER}
    assert [one.kind for one in found.records()] == ["dataset", "model"]


@pytest.mark.parametrize("text", ["", "{}", '{"pins": [{"kind": "model"}], "benchmarks": [], "lock": ""}'])
def test_a_damaged_record_is_named(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"run.json: not a record of pins \("):
        pins.from_json(text, "run.json")


def test_pins_of_a_command_end_with_it() -> None:
    before = pins.current()
    with pins.using(pins.Pins([INFO])) as here:
        assert pins.current() is here
    assert pins.current() is before


def test_the_pins_of_a_record_are_kept_without_their_files() -> None:
    kept = pins.Pins([INFO.record], moved="frozen")
    assert kept.records(earlier=True) == [INFO.record] and kept.records() == []


def test_only_branches_and_tags_are_noted_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (mine := tmp_path / "mine").write_text("precious")
    for asked in (str(mine), "../../../mine", COMMIT, None, "feature/x"):
        remember_fetched(RepoInfo("model", "org/name", asked, COMMIT))
    assert mine.read_text() == "precious"
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    assert {p.relative_to(refs).as_posix() for p in refs.rglob("*") if p.is_file()} == {"main", "feature/x"}
    (refs / "notes").write_text("not a commit")
    (refs / "out").symlink_to(tmp_path)
    (tmp_path / "commit").write_text(COMMIT)
    for asked in ("notes", "out/mine", "out/commit", "out/new", "feature"):
        remember_fetched(RepoInfo("model", "org/name", asked, OTHER))
    assert (refs / "notes").read_text() == "not a commit" and mine.read_text() == "precious"
    assert (tmp_path / "commit").read_text() == COMMIT and not (tmp_path / "new").exists()
    remember_fetched(RepoInfo("model", "org/name", "feature/x", OTHER))
    assert (refs / "feature/x").read_text() == OTHER


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
