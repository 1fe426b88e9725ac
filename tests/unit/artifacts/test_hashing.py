"""Hashes are remembered between processes for unchanged files, and never for changed ones."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from stlm_kd.artifacts import hashing
from stlm_kd.artifacts.stage_store import copy_folder

OLD_S = 10
"""Age of a file whose times can no longer hide a change."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, with files that look old enough to be stored."""
    monkeypatch.setenv(hashing.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(hashing.time, "time_ns", lambda real=time.time_ns: real() + OLD_S * 10**9)
    forget()
    return tmp_path / "cache/hashes.jsonl"


def forget() -> None:
    """What a new process knows."""
    hashing._known.clear()
    hashing._loaded.clear()


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    found: list[Path] = []
    real = hashing.sha256
    monkeypatch.setattr(hashing, "sha256", lambda path: found.append(path) or real(path))
    return found


def test_both_hashes_are_right(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"what is up, doc?")
    assert (
        hashing.known_hash(file, "git") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    )  # the Pro Git book's example
    assert (
        hashing.known_sha256(file) == hashing.sha256(file) == hashlib.sha256(b"what is up, doc?").hexdigest()
    )


def test_a_file_is_read_once_by_all_processes(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = tmp_path / "a", reads(monkeypatch)
    file.write_bytes(b"1")
    digests = []
    for _ in range(3):
        digests += [hashing.known_sha256(file), hashing.known_sha256(file)]
        forget()
    assert len(read) == 1
    assert {*digests} == {hashlib.sha256(b"1").hexdigest()}


@pytest.mark.parametrize("how", ["written in place", "replaced", "written with its old time"])
def test_a_changed_file_is_read_again(tmp_path: Path, store: Path, how: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    hashing.known_sha256(file)
    before = file.stat()
    time.sleep(0.02)
    if how == "replaced":
        (tmp_path / "b").write_bytes(b"2")
        (tmp_path / "b").replace(file)
    else:
        file.write_bytes(b"2")
    if how == "written with its old time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        assert hashing.known_sha256(file) == hashlib.sha256(b"2").hexdigest()
        forget()


def test_a_young_file_is_not_stored(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv(hashing.CACHE, str(store.parent))
    (tmp_path / "a").write_bytes(b"1")
    hashing.known_sha256(tmp_path / "a")
    assert not store.exists()


def test_damage_to_the_store_costs_reading_only(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / str(number) for number in range(4)]
    for file in files:
        file.write_text(file.name)
        hashing.known_sha256(file)
    content = bytearray(store.read_bytes())
    lines = content.split(b"\n")
    content[content.index(lines[1]) + 40] ^= 1
    store.write_bytes(bytes(content[:-10]) + b"\n\xff\xfe not a line")
    forget()
    read = reads(monkeypatch)
    for file in files:
        assert hashing.known_sha256(file) == hashlib.sha256(file.name.encode()).hexdigest()
    assert [path.name for path in read] == ["0", "3"], "the damaged line and the cut one"


def test_the_store_is_bounded_and_keeps_the_newest(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashing, "_MAX_LINES", 20)
    files = [tmp_path / str(number) for number in range(30)]
    for file in files:
        file.touch()
        hashing.known_sha256(file)
    forget()
    read = reads(monkeypatch)
    hashing.known_sha256(files[-1])
    assert not read
    assert len(store.read_bytes().splitlines()) <= 20


def test_a_store_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    (tmp_path / "cache").touch()
    (tmp_path / "a").write_bytes(b"1")
    assert hashing.known_sha256(tmp_path / "a") == hashlib.sha256(b"1").hexdigest()


@pytest.mark.parametrize("is_known", [True, False])
def test_a_shared_weight_is_not_read_again_after_each_link(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    stage, names = tmp_path / "stage", ("model.safetensors", "config.json")
    stage.mkdir()
    for name in names:
        (stage / name).write_text("1")
    if is_known:
        hashing.known_sha256(stage / names[0])
    read = reads(monkeypatch)
    for run in ("a", "b", "b"):  # the last one replaces a link
        time.sleep(0.02)
        copy_folder(stage, tmp_path / run)
        forget()
    expected = hashlib.sha256(b"1").hexdigest()
    assert {hashing.known_sha256(tmp_path / place / names[0]) for place in ("stage", "a", "b")} == {expected}
    assert len(read) == (0 if is_known else 3)


def test_a_weight_that_is_written_while_it_is_linked_is_read_again(tmp_path: Path, store: Path) -> None:
    for name in ("source", "other"):
        (tmp_path / name).write_text("1")
        hashing.known_sha256(tmp_path / name)
    time.sleep(0.02)
    with hashing.linked({tmp_path / "source": tmp_path / "new", tmp_path / "other": tmp_path / "copy"}):
        (tmp_path / "new").hardlink_to(tmp_path / "source")
        (tmp_path / "new").write_text("2")
        (tmp_path / "copy").write_text("3")
    for _ in range(2):
        found = [hashing.known_sha256(tmp_path / name) for name in ("source", "new", "other", "copy")]
        assert found == [hashlib.sha256(text).hexdigest() for text in (b"2", b"2", b"1", b"3")]
        forget()


def test_hashed_anew_reads_what_is_known_once_more(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    hashing.known_sha256(file)
    read = reads(monkeypatch)
    with hashing.hashed_anew():
        hashing.known_sha256(file)
        assert hashing.os.environ[hashing.ANEW], "also for processes that are started"
        hashing.known_sha256(file)
    hashing.known_sha256(file)
    assert len(read) == 1 and hashing.ANEW not in hashing.os.environ


def test_what_would_block_or_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a plain file"):
            hashing.known_sha256(path)


def test_a_line_that_is_no_hash_and_a_pipe_in_the_stores_place_cost_reading_only(
    tmp_path: Path, store: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    expected = hashlib.sha256(b"content").hexdigest()
    store.parent.mkdir()
    store.write_bytes(b"00000000\n%s [1]\n" % hashing._checksum(b"[1]"))
    assert hashing.known_sha256(file) == expected
    store.unlink()
    os.mkfifo(store)
    forget()
    assert hashing.known_sha256(file) == expected


def test_what_was_hashed_while_it_was_written_is_not_read(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"1")
    digest = hashlib.sha256(b"1").hexdigest()
    hashing.remember(tmp_path, {"a": digest})
    read = reads(monkeypatch)
    forget()
    assert hashing.known_sha256(tmp_path / "a") == digest and not read
    time.sleep(0.02)
    (tmp_path / "a").write_bytes(b"2")
    assert hashing.known_sha256(tmp_path / "a") == hashlib.sha256(b"2").hexdigest()


@pytest.mark.parametrize("size", [1, 1000])
def test_only_for_large_files_it_waits_until_other_processes_can_know_them(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(hashing.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "_WORTH_WAITING", 100)
    monkeypatch.setattr(hashing, "_SETTLED_NS", 50_000_000)
    (tmp_path / "a").write_bytes(bytes(size))
    began = time.monotonic()
    hashing.remember(tmp_path, {"a": "digest"})
    assert (time.monotonic() - began > 0.04) == (size > 100) == (tmp_path / "cache/hashes.jsonl").exists()


def test_what_another_process_hashed_meanwhile_is_not_read(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
        hashing.known_sha256(tmp_path / name)
        if name == "a":
            before = dict(hashing._known), dict(hashing._loaded)
    for now, then in zip(
        (hashing._known, hashing._loaded), before, strict=True
    ):  # of a process that began then
        now.clear()
        now.update(then)
    read = reads(monkeypatch)
    assert [hashing.known_sha256(tmp_path / name) for name in "abc"]
    assert not read
