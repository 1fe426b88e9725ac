"""Files and folders that appear whole or not at all, on disks that are full."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stlm_kd.artifacts.atomic import (
    clear_unfinished,
    clear_unfinished_for,
    storage_as_error,
    system_errors,
    write_text,
    written_whole,
)
from stlm_kd.artifacts.output import write_output, write_page
from stlm_kd.artifacts.stage_store import copy_folder
from stlm_kd.data.tokenizers import train_tokenizer
from stlm_kd.errors import MissingResourceError, UsageError
from stlm_kd.models.load import save_model
from tests.support.pico import pico_model
from tests.unit.training.test_checkpoint import files_of_at_most

TEXT = ["a lot of words about nothing", "and some more of them"]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(folder: Path) -> None:
    save_model(pico_model("gpt2", vocabulary=300), train_tokenizer(TEXT, size=262), folder / "model")


def copied(folder: Path) -> None:
    source = folder.parent / "source"
    source.mkdir(exist_ok=True)
    (source / "long.txt").write_text("x" * 5000)
    copy_folder(source, folder / "copy")


def written(folder: Path) -> None:
    write_text(folder / "file.txt", "y" * 5000)


@pytest.mark.parametrize("write", [saved, copied, written])
def test_what_a_full_disk_cuts_short_is_a_system_error_and_leaves_what_was_there(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    with files_of_at_most(2000), pytest.raises(OSError) as raised:
        write(folder)
    assert raised.value.errno == errno.EFBIG
    assert everything(folder) == {}
    write(folder)
    before = everything(folder)
    assert before
    with files_of_at_most(2000), pytest.raises(OSError):
        write(folder)
    assert everything(folder) == before


def test_libraries_that_tell_of_the_system_in_words_are_understood(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXT, size=262)
    weights = {"w": torch.zeros(1000)}
    for write in (
        lambda: tokenizer.save_pretrained(tmp_path),
        lambda: save_file(weights, tmp_path / "w.safetensors"),
    ):
        with files_of_at_most(1500), pytest.raises(OSError) as raised, system_errors(tmp_path):
            write()
        assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path))


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    for error in (ValueError("no (os error)"), OSError(errno.EACCES, "denied", "x"), shutil.Error("odd")):
        with pytest.raises(type(error)) as raised, storage_as_error(tmp_path), system_errors(tmp_path):
            raise error
        assert raised.value is error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_file_and_what_to_do(tmp_path: Path, code: int) -> None:
    for name, shown in (("some.bin", "some.bin"), (None, str(tmp_path))):
        with (
            pytest.raises(MissingResourceError, match="Free some space") as raised,
            storage_as_error(tmp_path),
        ):
            raise OSError(code, os.strerror(code), name)
        assert str(raised.value).startswith(f"{shown}: cannot be written ({os.strerror(code)})")


def test_what_a_killed_process_left_goes_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".model.12.unfinished").mkdir(parents=True)
    (tmp_path / "deep" / ".model.12.unfinished" / "half").write_text("")
    (tmp_path / ".other.7.unfinished").write_text("")
    for kept in ("whole", ".hidden", "deep/model"):
        (tmp_path / kept).write_text("")
    (tmp_path / ".model.13.unfinished").write_text("")
    clear_unfinished_for(tmp_path / "model")
    left = {".other.7.unfinished", "whole", ".hidden", "deep/model", "deep/.model.12.unfinished/half"}
    assert set(everything(tmp_path)) == left
    clear_unfinished(tmp_path)
    assert set(everything(tmp_path)) == {"whole", ".hidden", "deep/model"}


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with written_whole(tmp_path / "folder") as unfinished:
            unfinished.mkdir()
            (unfinished / content).write_text(content)
    assert everything(tmp_path) == {"folder/second": b"second"}


def test_a_folder_that_was_moved_aside_comes_back_unless_it_was_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "folder"
    place.mkdir()
    (place / "old").write_text("old")

    replace = Path.replace

    def refused(self: Path, to: Path) -> Path:
        if self.suffix == ".unfinished":
            raise OSError(errno.EIO, "no")
        return replace(self, to)

    with monkeypatch.context() as patch, pytest.raises(OSError), written_whole(place) as unfinished:
        patch.setattr(Path, "replace", refused)
        unfinished.mkdir()
    assert everything(tmp_path) == {"folder/old": b"old"}
    for clear in (lambda: clear_unfinished_for(place), lambda: clear_unfinished(tmp_path)):
        place.rename(tmp_path / ".folder.12.replaced")  # as a process that is killed between two steps
        clear()
        (tmp_path / ".folder.13.replaced").mkdir()
        clear()
        assert everything(tmp_path) == {"folder/old": b"old"} and len([*tmp_path.iterdir()]) == 1


def test_a_file_never_takes_the_place_of_anything_but_a_file(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "folder", tmp_path / "pipe"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    os.mkfifo(pipe)
    for target in (folder, pipe):
        with pytest.raises(FileExistsError):
            write_text(target, "new")
        with pytest.raises(UsageError, match=f"--output {target}: .*expected the name of a file"):
            write_output(target, {})
        with pytest.raises(UsageError, match=f"--html {target}: .*expected the name of a file"):
            write_page(target, "")
    with pytest.raises(OSError), written_whole(folder / "kept") as unfinished:
        unfinished.mkdir()
    assert everything(tmp_path) == {"folder/kept": b"kept"}
    assert pipe.is_fifo() and len([*tmp_path.iterdir()]) == 2


def test_what_a_link_points_to_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    write_page(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "new"
