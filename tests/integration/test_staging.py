"""The folder that is pushed for a recipe: as written where that can be, and the same recipe elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.publishing.staging import Staged, stage
from stlm_kd.recipe import load, recipe_hash
from stlm_kd.recipe.load import checked
from stlm_kd.recipe.locate import Source, read_source

BASE = """# Purpose: What all share.
task: clm
student: {preset: stlm-nano, tokenizer: {train: bpe, size: 300}}
data: {train: DATA, validation: {sample: validation, size: 5k}, context: 64}
objectives: [{loss: labels}]   # nothing else
train: {steps: 10}
sweep: {length: [{train.steps: 5}, {train.steps: 50}]}
"""
SAMPLE = BASE.replace("DATA", "{sample: train, size: 20k}")
DATA = BASE.replace("DATA", "data")
CHILD = "# Purpose: One of them.\nextends: ../base.yaml\ntrain: {steps: 20}\n"
TAUGHT = SAMPLE + "teachers: [{name: a, recipe: t/small.yaml}]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    return tmp_path


def staged(name: str, files: dict[str, str], *, with_data: bool = True) -> Staged:
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    return stage(name, None, Path("out"), "hf://alice/tiny", with_data=with_data)


def out() -> dict[str, str]:
    return {path.relative_to("out").as_posix(): path.read_text() for path in Path("out").rglob("*.*")}


@pytest.mark.parametrize(
    ("main", "files"),
    [
        ("base.yaml", {"base.yaml": SAMPLE}),
        ("sub/base.yaml", {"sub/base.yaml": DATA, "sub/data/a.txt": "One."}),
        ("x/child.yaml", {"x/child.yaml": CHILD.replace("../", ""), "x/base.yaml": SAMPLE}),
        ("m.yaml", {"m.yaml": TAUGHT, "t/small.yaml": SAMPLE}),
        ("m.yaml", {"m.yaml": "extends: sample-two-teachers\n"}),
    ],
)
def test_a_recipe_goes_as_written_with_what_is_in_its_folder(
    main: str, files: dict[str, str], here: Path
) -> None:
    found = staged(main, files)
    assert found.faults == ()
    root = Path(main).parent
    assert out() == {
        "recipe.yaml" if path == main else Path(path).relative_to(root).as_posix(): text
        for path, text in files.items()
    }
    assert found.stranger is not None and recipe_hash(found.stranger) == recipe_hash(load(main))


@pytest.mark.parametrize(
    ("name", "files", "data"),
    [
        ("x/child.yaml", {"x/child.yaml": CHILD, "base.yaml": SAMPLE}, {}),
        ("x.yaml", {"x.yaml": "extends: recipe.yaml\n", "recipe.yaml": SAMPLE}, {}),
        ("m.yaml", {"m.yaml": TAUGHT, "t/small.yaml": DATA, "t/data/a.txt": "One."}, {"data/a.txt": "One."}),
    ],
)
def test_what_lies_elsewhere_is_written_into_it(
    name: str, files: dict[str, str], data: dict[str, str], here: Path
) -> None:
    found = staged(name, files)
    assert found.faults == ()
    written = out()
    assert written.keys() == {"recipe.yaml", *data} and "extends" not in written["recipe.yaml"]
    assert {path: written[path] for path in data} == data
    stranger = checked(read_source(Source(Path("out/recipe.yaml"), "hf://alice/tiny", Path("out"))))
    assert recipe_hash(stranger) == recipe_hash(load(name))


def test_two_files_of_one_name_and_hidden_or_other_files_are_told(here: Path) -> None:
    files = {"m.yaml": TAUGHT.replace("{sample: train, size: 20k}", "data"), "t/small.yaml": DATA}
    found = staged("m.yaml", files | {"data/a.txt": "One.", "t/data/a.txt": "Two.", "data/.hidden": ""})
    (fault,) = found.faults
    assert "data/a.txt: two files would have this name" in str(fault)
    found = staged("m.yaml", {"data/b.parquet": "x", "t/data/a.txt": "One."})
    (fault,) = found.faults
    assert "data/b.parquet: only text and tables in the folder data" in str(fault)
    told = [fault.message for fault in staged("m.yaml", {}, with_data=False).faults]
    assert "give --with-data" in told[0] and len(told) == len({*told}) == 2


@pytest.mark.parametrize("link", ["data/a.txt", "data"])
def test_a_link_out_of_the_folder_does_not_leave(link: str, here: Path) -> None:
    Path("private").mkdir()
    Path("private/a.txt").write_text("Mine.")
    Path("data").mkdir(exist_ok=link != "data")
    if link == "data":
        Path("data").rmdir()
    Path(link).symlink_to(here / "private" / Path(link).relative_to("data"))
    found = staged("base.yaml", {"base.yaml": DATA})
    assert any("data/a.txt: a link to somewhere else" in str(fault) for fault in found.faults)
    assert "data/a.txt" not in out()
