"""Copies of data sets on this machine: which of them are the pinned data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.errors import DataError
from stlm_kd.eval.pins import MIRROR, data_of

COMMIT = "c" * 40


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/glue").mkdir(parents=True)
    (file := tmp_path / "data/glue/rte.jsonl").write_text("{}")
    return file


@pytest.mark.parametrize("root", ["data", "./data", "absolute"])
@pytest.mark.parametrize("name", ["data/glue/rte.jsonl", "absolute"])
def test_a_copy_is_the_data_set_however_the_path_to_it_is_written(
    root: str, name: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(copy.parents[1]) if root == "absolute" else root)
    file = copy if name == "absolute" else Path(name)
    assert data_of("org/glue", [file]).local is not None, "nothing says what it is"
    (copy.parents[1] / MIRROR).write_text(json.dumps({"id": "org/glue", "commit": COMMIT}))
    (repo,) = data_of("org/glue", [file]).repos.values()
    assert (repo.id, repo.commit) == ("org/glue", COMMIT)
    (copy.parents[2] / MIRROR).write_text("not looked at")
    assert data_of("org/other", [file]).local is not None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"id": "org/glue", "commit": 5}, "commit 5 found; expected 40 hexadecimal digits"),
        ({"id": "org/glue", "commit": None}, "commit None found"),
        ({"id": "org/glue", "commit": ["main"]}, "commit .'main'. found"),
        ({"id": "org/glue", "commit": "main"}, "commit 'main' found"),
        ({"id": ["x"], "commit": COMMIT}, "id .'x'. found; expected that of a data set"),
        ({"id": "../x", "commit": COMMIT}, "id '../x' found"),
        ({"id": "org/glue"}, "KeyError"),
        ([], "TypeError"),
        (5, "TypeError"),
    ],
)
def test_what_a_copy_says_of_itself_is_checked(
    content: object, says: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_KD_DATA", "data")
    copy.with_name(MIRROR).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{MIRROR}: {says}"):
        data_of("org/glue", [copy])
