"""What is a name on the Hub, and what is a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from stlm_kd.errors import MissingResourceError
from stlm_kd.notes import note
from stlm_kd.sharing.names import HubName, hub_name, hub_name_or_path

COMMIT = "c540970f9e29518b1d8f06ab8b24cba66ad77b6d"


@pytest.mark.parametrize(
    ("text", "name", "revision"),
    [
        ("Qwen/Qwen2-0.5B", "Qwen/Qwen2-0.5B", None),
        ("gpt2", "gpt2", None),
        (f"org/name@{COMMIT}", "org/name", COMMIT),
        ("hub:org/name@v1.0", "org/name", "v1.0"),
        ("org/name@feature/x", "org/name", "feature/x"),
        ("org/name@refs/convert/parquet", "org/name", "refs/convert/parquet"),
    ],
)
def test_names_on_the_hub(
    text: str, name: str, revision: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = HubName("model", name, revision)
    assert hub_name_or_path(text) == hub_name(text) == found
    assert hub_name(str(found)) == found
    assert found.is_commit is (revision == COMMIT)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "./a/b",
            "../b",
            "/a/b",
            "~/a",
            "~a/b",
            "$DATA/model",
            "${DATA}/x",
            "a/b/c",
            "a/b/",
            ".",
            "-x",
            "a/-",
        ),
        *("org/name.git", "a--b/c", "a..b", "C:\\models", "ü/x", "", "a b", "a" * 300, "a" * 300 + "/b"),
    ],
)
def test_paths(text: str) -> None:
    assert hub_name_or_path(text) is None


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("hub:./a", "expected an id on the Hub"),
        ("hub:a/b/c", "expected an id on the Hub"),
        ("org/name@", "expected a branch, a tag or a commit"),
        ("org/name@../../x", "expected a branch, a tag or a commit"),
        ("org/name@v 1", "expected a branch, a tag or a commit"),
        ("org/name@v1@v2", "expected a branch, a tag or a commit"),
        (f"org/{'n' * 90}@{'v' * 300}", "expected a branch, a tag or a commit"),
        ("org/name@refs/pr/7", "a pull request's branch"),
    ],
)
def test_names_that_cannot_be_meant(text: str, cause: str) -> None:
    with pytest.raises(MissingResourceError, match=cause):
        hub_name_or_path(text)


def test_a_revision_stands_in_one_place() -> None:
    assert hub_name("org/name@v1", revision="v1") == hub_name("org/name", revision="v1")
    with pytest.raises(MissingResourceError, match="two revisions found, v1 and v2"):
        hub_name("org/name@v1", revision="v2")


def test_a_folder_in_the_form_of_a_hub_id_is_told_and_hub_means_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    note.cache_clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert hub_name_or_path("org/name") is None
    assert hub_name_or_path("org/name") is None
    assert caplog.messages == [
        "org/name: read as the path here; write ./org/name for it, or hub:org/name for the Hub"
    ]
    for text in ("hub:org/name", "org/name@v1", "org/other"):
        assert hub_name_or_path(text) is not None
    assert hub_name("org/name", "dataset").kind == "dataset", "the key hub: of data never means a folder"
