"""Files pushed to bare git repositories and folders: whole, onto what is there, or not at all."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import stlm_kd
from stlm_kd.cli.launching import processes as launching
from stlm_kd.errors import MissingResourceError, UsageError
from stlm_kd.publishing.targets import Contents, send, target_of
from stlm_kd.sharing.address import GitAddress
from stlm_kd.sharing.fetch import fetch
from tests.integration.test_fetching import Bare
from tests.support.hostile import FOLDER
from tests.support.road import stlm_kd as stlm_kd_command

RECIPE = """task: clm
student: {tokenizer: {train: bpe, size: 300}, preset: stlm-nano}
data: {train: data/train.txt, context: 64}
objectives: [{loss: labels}]
train: {steps: 10}
tracking: []
"""
TEACHER = "teachers: [{name: a, model: org/teacher}]\n"
FILES = {**FOLDER, "data/extra.txt": b"$Id$\r\n"}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bare:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "alice")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "alice@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text(
        f'[filter "lfs"]\n\tclean = touch {tmp_path}/ran\n[core]\n\tautocrlf = true\n'
    )
    return Bare(tmp_path / "repository.git")


def contents(folder: Path, files: dict[str, bytes]) -> Contents:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return Contents({name: folder / name for name in files}, "recipe.yaml", "Recipe")


def push(address: str | Path, what: Contents, tag: str | None = None) -> str:
    return send(target_of(str(address)), what, private=False, tag=tag)


def test_a_branch_gets_one_commit_and_keeps_what_is_not_of_the_recipe(bare: Bare, tmp_path: Path) -> None:
    what = contents(tmp_path / "one", FILES)
    first = push(str(bare.address), what, tag="v1")
    assert push(str(bare.address), what) == first, "nothing changed"
    commit = first.partition("@")[2]
    assert bare.git("rev-parse", "main") == bare.git("rev-parse", "v1") == commit
    found = fetch(GitAddress(bare.address.url, commit), cache=tmp_path / "cache")
    assert {name: (found.folder / name).read_bytes() for name in found.hashes} == FILES
    extra = [
        ("100644", ".gitattributes", b"* filter=lfs text=auto\n"),
        ("100644", "code.py", b"1\n"),
        ("100644", "other.yaml", b"a: 1\n"),
    ]
    bare.add(FILES, extra=extra)
    fewer = {name: content for name, content in FILES.items() if name != "data/train.txt"}
    second = push(f"{bare.address}@main", contents(tmp_path / "two", fewer)).rpartition("@")[2]
    names = bare.git("ls-tree", "-r", "--name-only", second).split()
    assert sorted(names) == sorted([*fewer, ".gitattributes", "code.py", "other.yaml"])
    assert bare.git("cat-file", "blob", f"{second}:data/extra.txt", data=b"") == "$Id$"
    assert not (tmp_path / "ran").exists()
    assert bare.git("log", "-1", "--format=%an %s %P", second).startswith("alice Recipe ")
    with pytest.raises(MissingResourceError, match="the tag v1 exists"):
        push(str(bare.address), what, tag="v1")
    other = push(f"{bare.address}@other", what).rpartition("@")[2]
    assert bare.git("log", "--format=%H", "other") == other, "a branch of its own"


def test_a_commit_that_came_first_and_files_of_others_are_not_replaced(bare: Bare, tmp_path: Path) -> None:
    what = contents(tmp_path / "one", FILES)
    theirs = bare.commit(bare.tree([("100644", "README.md", b"# Theirs")]))
    with pytest.raises(MissingResourceError, match=r"holds README\.md but no recipe\.yaml"):
        push(str(bare.address), what)
    bare.add(FOLDER)
    hook = bare.path / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\nunset GIT_QUARANTINE_PATH\ngit update-ref refs/heads/main {theirs}\n")
    hook.chmod(0o755)
    with pytest.raises(MissingResourceError, match="another commit came first on main; nothing was pushed"):
        push(str(bare.address), what)
    assert bare.git("rev-parse", "main") == theirs


def test_a_folder_is_replaced_whole_unless_it_holds_something_else(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert push(out, contents(tmp_path / "one", FILES)) == str(out)
    push(out, contents(tmp_path / "two", {"recipe.yaml": b"task: mlm\n"}))
    assert [path.name for path in out.rglob("*")] == ["recipe.yaml"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(MissingResourceError, match=r"holds thesis\.txt, which is not of a recipe"):
        push(out, contents(tmp_path / "one", FILES))
    with pytest.raises(MissingResourceError, match="in the way is a file"):
        push(out / "recipe.yaml", contents(tmp_path / "one", FILES))
    assert sorted(path.name for path in out.parent.rglob("*")) == ["out", "recipe.yaml", "thesis.txt"]
    (tmp_path / "notes" / "data").mkdir(parents=True)
    (tmp_path / "notes" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(MissingResourceError, match=r"holds data/mine\.txt, which is not of a recipe"):
        push(tmp_path / "notes", contents(tmp_path / "two", {"recipe.yaml": b"task: mlm\n"}))


def test_a_pulled_folder_of_a_repository_on_this_disk_replaces_only_recipes(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, copy = str(bare.address), tmp_path / "copy"
    monkeypatch.setenv("STLM_KD_CACHE", str(tmp_path / "cache"))
    push(address, contents(tmp_path / "one", FILES))
    stlm_kd.pull_recipe(address, copy)
    stlm_kd.pull_recipe(address, copy, overwrite=True)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} == {*FILES}
    (copy / "thesis.txt").write_text("mine")
    with pytest.raises(MissingResourceError, match=r"holds thesis\.txt, which is not of a recipe"):
        stlm_kd.pull_recipe(address, copy, overwrite=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UsageError, match="holds the current folder; choose another DEST"):
        stlm_kd.pull_recipe(address, ".", overwrite=True)
    assert (copy / "thesis.txt").read_text() == "mine"


def test_variables_that_redirect_git_are_not_inherited(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = contents(tmp_path / "one", FILES)
    with monkeypatch.context() as redirected:
        for name in ("DIR", "COMMON_DIR", "INDEX_FILE", "ALTERNATE_OBJECT_DIRECTORIES", "OBJECT_DIRECTORY"):
            redirected.setenv(f"GIT_{name}", str(tmp_path / "elsewhere"))
        redirected.setenv("GIT_CONFIG_COUNT", "1")
        redirected.setenv("GIT_CONFIG_KEY_0", f"url.{tmp_path}/elsewhere.insteadOf")
        redirected.setenv("GIT_CONFIG_VALUE_0", bare.address.url)
        commit = push(str(bare.address), what).rpartition("@")[2]
    assert bare.git("rev-parse", "main") == commit
    assert bare.git("log", "-1", "--format=%an", "main") == "alice" and not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice/tiny", "for the Hub, give hf://alice/tiny; for a folder, ./alice/tiny"),
        ("hf://alice/tiny@v1", "expected hf://USER/NAME alone"),
        ("hf://alice/tiny/other.yaml", "expected hf://USER/NAME alone"),
        ("hf://datasets/alice/tiny", "expected hf://USER/NAME alone"),
        ("git+https://h.org/r.git@" + "1" * 40, "git and the Hub make commits"),
        ("https://h.org/recipe.yaml", "cannot be written over https"),
        ("ftp://h.org/x", "no address of a recipe"),
    ],
)
def test_what_is_no_place_to_push_to_is_a_usage_error(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says.replace(".", r"\.")):
        target_of(text)


def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    what = contents(tmp_path / "one", {"recipe.yaml": b"task: mlm\n"})
    (here := tmp_path / "here" / "deep").mkdir(parents=True)
    monkeypatch.chdir(here)
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(UsageError, match="holds the current folder; choose another folder"):
            push(name, what)
    assert push("../new", what) == "../new" and (here.parent / "new" / "recipe.yaml").is_file()


@pytest.mark.parametrize(
    "tag",
    [
        "a b",
        "",
        "a..b",
        "v1.lock",
        "v1.",
        "-v",
        "refs/tags/x",
        "HEAD",
        "1234abc",
        "a~b",
        "../v1",
        "v1:main",
        "1" * 40,
        "é",
        "a\n",
    ],
)
def test_a_tag_that_git_or_an_address_would_not_take_is_a_usage_error(tag: str) -> None:
    with pytest.raises(UsageError, match=r"--tag: .* found; expected letters"):
        target_of("hf://alice/tiny", tag=tag)
    assert target_of("hf://alice/tiny", tag="v1.0/rc-2+b") == target_of("hf://alice/tiny")


@pytest.mark.parametrize(("options", "says"), [({"private": True}, "--private"), ({"tag": "v1"}, "--tag")])
def test_an_option_that_a_folder_does_not_have_is_a_usage_error(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        target_of("./out", **options)


def test_what_git_refuses_is_told_with_what_to_do(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what = contents(tmp_path / "files", FILES)
    with pytest.raises(MissingResourceError, match=r"cannot be pushed to \(fatal: .*check the address"):
        push(f"git+file://{tmp_path}/none.git", what)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.delenv(f"GIT_{who}_NAME")
        monkeypatch.delenv(f"GIT_{who}_EMAIL")
    (tmp_path / "gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    with pytest.raises(MissingResourceError, match="tell git who you are"):
        push(str(bare.address), what)


def test_a_check_before_a_push_finds_the_same_faults_and_changes_nothing(
    bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    what, out = contents(tmp_path / "files", FILES), tmp_path / "out"
    check = partial(send, what=what, private=False, tag=None, check_only=True)
    check(target_of(str(bare.address)))
    check(target_of(str(out)))
    assert bare.git("for-each-ref") == "" and not out.exists()
    bare.commit(bare.tree([("100644", "README.md", b"# Theirs")]))
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for target, says in ((str(bare.address), "holds README.md"), (str(out), "holds thesis.txt")):
        with pytest.raises(MissingResourceError, match=says):
            check(target_of(target))


@pytest.mark.parametrize(
    "words", [("distill", "-r"), ("distill", "--locked", "--recipe"), ("teacher", "cache", "-c")]
)
def test_all_processes_of_a_command_read_one_commit(
    words: tuple[str, ...], bare: Bare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE if words[0] == "distill" else RECIPE.replace("objectives", TEACHER + "objectives")
    commit = bare.add({**FOLDER, "recipe.yaml": recipe.encode()})
    monkeypatch.setenv("STLM_KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    launched: list[list[str]] = []
    monkeypatch.setattr(launching, "launch", lambda words, processes, node: launched.append(words) or 0)
    line = [*words, str(bare.address), "--processes", "2"]
    monkeypatch.setattr(sys, "argv", ["stlm-kd", *line])
    done = stlm_kd_command(*line)
    assert done.exit_code == 0, done.output
    assert launched == [[*words, f"{bare.address}@{commit}"]]
