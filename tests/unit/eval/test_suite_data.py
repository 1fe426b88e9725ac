"""Local copies of a suite's data set, and the file that says which data set they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stlm_kd.errors import DataError
from stlm_kd.eval.pins import data_of
from stlm_kd.sharing.data_sets.named import mirror
from stlm_kd.sharing.names import HubName

COMMIT = "1" * 40


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a data set below a folder that the environment names relatively."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STLM_KD_DATA", "copy")
    folder = tmp_path / "copy" / "lm_eval" / "blimp"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    return folder / "rows.jsonl"


@pytest.mark.parametrize("place", ["copy", "copy/lm_eval", "copy/lm_eval/blimp"])
def test_a_copy_is_the_data_set_that_a_file_above_it_names(place: str, file: Path) -> None:
    assert data_of("nyu-mll/blimp", [file]).local is not None
    Path(place, "hub.json").write_text(json.dumps({"id": "nyu-mll/blimp", "commit": COMMIT}))
    for path in (file, file.relative_to(Path.cwd())):
        found = data_of("nyu-mll/blimp", [path])
        assert found.local is None and found.repos["nyu-mll/blimp"].commit == COMMIT
        assert data_of("nyu-mll/blimp", [path], is_whole=False).local is not None


@pytest.mark.parametrize(
    "content", ['{"id": "a/b", "commit": 5}', '{"id": "a/b"}', "[]", "{", '{"id": "a/b", "commit": null}']
)
def test_a_malformed_file_is_named(content: str, file: Path) -> None:
    Path("copy", "hub.json").write_text(content)
    with pytest.raises(DataError, match=r"hub\.json"):
        data_of("nyu-mll/blimp", [file])


@pytest.mark.parametrize(
    ("configuration", "split"), [("../../b", "c"), ("..", "c"), (None, "../c"), (None, ".c")]
)
def test_a_name_does_not_leave_the_mirror(
    configuration: str | None, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STLM_KD_DATA", str(tmp_path / "data"))
    for place in ("data/a/b/in", "data/a", "b", "data/a/b"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        for name in ("c.jsonl", ".c.jsonl"):
            (tmp_path / place / name).write_text("{}")
    name = HubName("dataset", "a/b")
    assert mirror(name, configuration, [split]) is None
    assert mirror(name, None, ["c"]) is not None and mirror(name, "in", ["c"]) is not None
