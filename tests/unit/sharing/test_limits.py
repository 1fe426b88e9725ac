"""Listings of folders from elsewhere: what is fetched, and that nothing accepted leaves its folder."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stlm_kd.errors import RecipeError
from stlm_kd.sharing.limits import MAX_LISTED, Entry, checked_listing

PIECES = st.sampled_from(
    ["..", ".", "", "data", "Data", "x.txt", "X.TXT", "recipe.yaml", "con", "é.yaml", "é.yaml", "a\\b.yaml"]
)
PATHS = st.lists(PIECES, min_size=1, max_size=4).map("/".join) | st.text(max_size=12).map(
    lambda t: f"{t}.yaml"
)


def entries(*paths: str) -> list[Entry]:
    return [Entry(path, 1, "git:" + "0" * 40) for path in paths]


@given(st.lists(PATHS, max_size=5, unique=True))
def test_names_that_are_accepted_stay_inside_the_folder_and_differ_on_every_system(paths: list[str]) -> None:
    try:
        found = [entry.path for entry in checked_listing(entries(*paths), "x")]
    except RecipeError:
        return
    assert set(found) <= set(paths)
    for path in found:
        assert path.isascii()
        for kind in (PurePosixPath, PureWindowsPath):
            assert not kind(path).is_absolute() and ".." not in kind(path).parts and not kind(path).drive
        assert Path("/folder", path).resolve().is_relative_to("/folder")
    folded = {unicodedata.normalize("NFKC", path).casefold() for path in found}
    assert len(folded) == len(found)


def test_only_the_files_of_a_recipe_are_fetched() -> None:
    wanted = [
        "README.md",
        "data/a/b.csv.gz",
        "data/x.txt",
        "recipe.lock",
        "recipe.yaml",
        "results.json",
        "t/x.yaml",
    ]
    inside = ["stlm-kd/data/x.txt", "stlm-kd/recipe.lock", "stlm-kd/recipe.yaml"]
    left = [
        "model.safetensors",
        "data/x.pkl",
        "data/x.parquet",
        "data/x.py",
        "x.txt",
        "setup.py",
        ".github/x.yaml",
    ]
    left += [
        "t/results.json",
        "recipe.yaml.py",
        "Makefile",
        "caf\u00e9.png",
        "data/.hidden.txt",
        "data/x.txt.xz",
    ]
    found = checked_listing(entries(*wanted, *inside, *left), "x")
    assert [entry.path for entry in found] == sorted(wanted + inside)


def test_all_faults_are_reported_and_a_listing_is_not_read_to_its_end() -> None:
    read = []

    def endless() -> object:
        for number in range(10**9):
            read.append(number)
            yield Entry(f"../{number}", None, "")

    with pytest.raises(RecipeError) as caught:
        checked_listing(endless(), "hf://a/b")  # type: ignore[arg-type]
    assert len(caught.value.faults) == 21 and len(read) == MAX_LISTED + 1
    unknown = [Entry("recipe.yaml", None, ""), Entry("t.yaml", -1, ""), Entry("u.yaml", 1, "", is_file=False)]
    with pytest.raises(RecipeError, match=r"3 faults\n.*unknown number.*\n.*-1 bytes.*\n.*a link"):
        checked_listing(unknown, "hf://a/b")
